"""A network becomes a denoiser: denoise(x_t, t, cond) -> Estimates(x_0, eps, ...).

This is the interface between models and samplers. Whatever a network was trained to predict, a
sampler sees estimates of x_0 and eps; whatever changes an estimate (clipping, thresholding,
guidance, inpainting) takes a denoiser and returns one.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.parametrisations import Estimates, Parametrisation, edm
from diffjax.process import scales_like
from diffjax.schedules import Scales, Schedule
from diffjax.types import Array, Data, PerExample, Times

# network(x, time_input, cond) -> output; x and output (B, ...), time_input (B,) float32, or (B, 2)
# with a step's span where the parametrisation `spans`.
NetworkFn = Callable[[Data, PerExample, Any], Array]
# (t, schedule) -> what the network's time embedding is fed.
TimeInput = Callable[[Times, Schedule], Array]


@runtime_checkable
class Denoiser(Protocol):
    """denoise(x_t, t, cond): x_t (B, ...), t scalar or (B,), cond any pytree or None."""

    def __call__(self, x_t: Data, t: Times, cond: Any = None) -> Estimates: ...


@checked
def scaled_time(t: Times, schedule: Schedule) -> Array:
    """1000 t / T: the range that sinusoidal embeddings are made for, whatever T is."""
    return jnp.asarray(t, jnp.float32) * (1000.0 / schedule.T)


@checked
def unit_time(t: Times, schedule: Schedule) -> Array:
    """t / T: for networks that are differentiated in time, which a factor of 1000 would amplify."""
    return jnp.asarray(t, jnp.float32) / schedule.T


@checked
def quarter_log_sigma(t: Times, schedule: Schedule) -> Array:
    """EDM's c_noise = log(noise_scale / signal_scale) / 4 (Karras et al. 2022, table 1).

    Cut at +-5, far outside the published range: an embedding of the infinite log-SNR of pure noise
    would be NaN.
    """
    return jnp.clip(-schedule.log_snr(jnp.asarray(t)) / 8, -5.0, 5.0)


@checked
def scaled_log_snr(*, log_snr_min: float, log_snr_max: float) -> TimeInput:
    """0 at log_snr_max to 1000 at log_snr_min: one network for every schedule between the two.

    VDM's network is conditioned on gamma like this (Kingma et al. 2021, appendix B), so that the
    schedule may change, or be learned, while the network's task stays what it is.
    """

    def time_input(t: Times, schedule: Schedule) -> Array:
        log_snr = schedule.log_snr(jnp.asarray(t, jnp.float32))
        return (log_snr_max - log_snr) * (1000.0 / (log_snr_max - log_snr_min))

    return time_input


@checked
def predict(
    network: NetworkFn,
    x_t: Data,
    *,
    t: Times,
    cond: Any,
    schedule: Schedule,
    parametrisation: Parametrisation,
    time_input: TimeInput = scaled_time,
    span: Times = 0.0,
) -> tuple[Array, Scales[Array]]:
    """The network's raw output at (x_t, t), in x_t's type, and the scales at t.

    `span`, scalar or (B,), is that of a step, for a parametrisation that `spans`; 0 is its limit.

    Raises:
      ValueError: the output has not x_t's shape, with the parametrisation's `outputs` a channel.
    """
    shape = (*x_t.shape[:-1], parametrisation.outputs * x_t.shape[-1])
    return _predict(
        network, x_t, shape, t=t, cond=cond, span=span,
        schedule=schedule, parametrisation=parametrisation, time_input=time_input,
    )  # fmt: skip


@checked
def predict_with_variance(
    network: NetworkFn,
    x_t: Data,
    *,
    t: Times,
    cond: Any,
    schedule: Schedule,
    parametrisation: Parametrisation,
    time_input: TimeInput = scaled_time,
) -> tuple[Data, Data, Scales[Array]]:
    """As `predict`, of a network with a learned variance: its value, variance mix, and the scales.

    The first half of the channels is the value; the last half is v in [-1, 1] and the mix is
    (v + 1) / 2, as in Nichol & Dhariwal 2021's code. Nothing keeps v in its range: section 3.1
    found no need to.

    Raises:
      ValueError: the output has not x_t's shape with twice its channels.
    """
    shape = (*x_t.shape[:-1], 2 * x_t.shape[-1])
    output, scales = _predict(
        network, x_t, shape, t=t, cond=cond,
        schedule=schedule, parametrisation=parametrisation, time_input=time_input,
    )  # fmt: skip
    value, v = jnp.split(output, 2, axis=-1)
    return value, (v + 1) / 2, scales


def _predict(
    network: NetworkFn,
    x_t: Data,
    shape: tuple[int, ...],
    *,
    t: Times,
    cond: Any,
    schedule: Schedule,
    parametrisation: Parametrisation,
    time_input: TimeInput,
    span: Times = 0.0,
) -> tuple[Array, Scales[Array]]:
    """The network's output, which must have `shape`, and the scales.

    t is spread over the batch, so that one compiled network serves samplers (one t for all) and
    training (one t an example).
    """
    scales = scales_like(schedule, t, x_t)
    times = jnp.broadcast_to(time_input(t, schedule), x_t.shape[:1])
    if parametrisation.spans:
        spans = jnp.broadcast_to(jnp.asarray(span, jnp.float32), x_t.shape[:1])
        times = jnp.stack([times, spans], axis=-1)
    output = network(parametrisation.input_scale(scales) * x_t, times, cond)
    if output.shape != shape:
        expected = "" if shape == x_t.shape else f": expected {shape}"
        raise ValueError(f"the network returned {output.shape} for x_t of {x_t.shape}{expected}")
    return output.astype(x_t.dtype), scales


@checked
def denoiser(
    network: NetworkFn,
    schedule: Schedule,
    *,
    parametrisation: Parametrisation,
    time_input: TimeInput = scaled_time,
) -> Denoiser:
    """A network with a parametrisation (x0, eps, v, score, velocity, edm(...)) as a denoiser.

    Args:
      network: (x, time_input, cond) -> output of x's shape.
      schedule: the noise schedule the network was trained with.
      parametrisation: what the output means.
      time_input: what the network's time embedding is fed.

    Raises (when called): ValueError if the output's shape is not x_t's.
    """

    def denoise(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        output, scales = predict(
            network, x_t, t=t, cond=cond,
            schedule=schedule, parametrisation=parametrisation, time_input=time_input,
        )  # fmt: skip
        return parametrisation.estimates(output, x_t, scales)

    return denoise


@checked
def learned_variance_denoiser(
    network: NetworkFn,
    schedule: Schedule,
    *,
    parametrisation: Parametrisation,
    time_input: TimeInput = scaled_time,
) -> Denoiser:
    """A network of 2C channels as a denoiser whose estimates have a `variance_mix`.

    Nichol & Dhariwal 2021, section 3.1: the first C channels are the parametrisation's value, the
    last C are v in [-1, 1], and with mix = (v + 1) / 2 a step back has the variance
    exp(mix log beta + (1 - mix) log beta-tilde) (equation 15). `losses` have no use for v: train
    with `learned_variance.hybrid_loss` or `vlb_loss`.

    Args:
      network: (x, time_input, cond) -> output of x's shape with twice its channels.
      schedule, parametrisation, time_input: as in `denoiser`.

    Raises (when called): ValueError if the output has another shape.
    """

    def denoise(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        value, mix, scales = predict_with_variance(
            network, x_t, t=t, cond=cond,
            schedule=schedule, parametrisation=parametrisation, time_input=time_input,
        )  # fmt: skip
        return parametrisation.estimates(value, x_t, scales)._replace(variance_mix=mix)

    return denoise


@checked
def edm_denoiser(network: NetworkFn, schedule: Schedule, *, sigma_data: float = 0.5) -> Denoiser:
    """EDM's preconditioned denoiser, D = c_skip x + c_out F(c_in x; c_noise).

    Karras et al. 2022, equation 7 and table 1; on a schedule other than `karras` it is the same
    denoiser of x_t / signal_scale.
    """
    return denoiser(
        network, schedule, parametrisation=edm(sigma_data), time_input=quarter_log_sigma
    )
