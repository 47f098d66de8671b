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
from diffjax.types import Array, ArrayLike, Data, PerExample, Times

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
    """1000 t / T: the range that sinusoidal embeddings are made for, whatever T is.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> print(dj.denoisers.scaled_time(25, dj.schedules.cosine(T=50)))  # half of the way
    500.0
    """
    return jnp.asarray(t, jnp.float32) * (1000.0 / schedule.T)


@checked
def unit_time(t: Times, schedule: Schedule) -> Array:
    """t / T: for networks that are differentiated in time, which a factor of 1000 would amplify.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> print(dj.denoisers.unit_time(25, dj.schedules.cosine(T=50)))  # half of the way
    0.5
    """
    return jnp.asarray(t, jnp.float32) / schedule.T


@checked
def quarter_log_sigma(t: Times, schedule: Schedule) -> Array:
    """EDM's c_noise = log(noise_scale / signal_scale) / 4 (Karras et al. 2022, table 1).

    Cut at +-5, far outside the published range: an embedding of the infinite log-SNR of pure noise
    would be NaN.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow = dj.schedules.rectified_flow()
    >>> quarter = dj.denoisers.quarter_log_sigma(jnp.array([0.75, 1.0]), flow)
    >>> print(f"{quarter[0]:.3f} {jnp.log(3) / 4:.3f} {quarter[1]}")  # sigma is 3 and infinite
    0.275 0.275 5.0
    """
    return jnp.clip(-schedule.log_snr(jnp.asarray(t)) / 8, -5.0, 5.0)


@checked
def scaled_log_snr(*, log_snr_min: float, log_snr_max: float) -> TimeInput:
    """0 at log_snr_max to 1000 at log_snr_min: one network for every schedule between the two.

    VDM's network is conditioned on gamma like this (Kingma et al. 2021, appendix B), so that the
    schedule may change, or be learned, while the network's task stays what it is.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> embed = dj.denoisers.scaled_log_snr(log_snr_min=-5.0, log_snr_max=5.0)
    >>> print(embed(jnp.array(0.5), dj.schedules.rectified_flow()).round())  # log-SNR 0
    500.0
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

    Args:
      network: (x, time_input (B,) or (B, 2), cond) -> output.
      x_t: (B, ...) noisy data; the network sees it times the parametrisation's `input_scale`.
      t: scalar or (B,) times.
      cond: passed to the network.
      schedule: the noise schedule.
      parametrisation: what the output means.
      time_input: what the network's time embedding is fed.
      span: scalar or (B,), t - s of a step, for a parametrisation that `spans`; 0 is its limit.

    Returns:
      The output (B, ...), and the pair of scales, shaped to multiply x_t.

    Raises:
      ValueError: the output has not x_t's shape, with the parametrisation's `outputs` a channel.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> network = lambda x, time_input, cond: x + time_input[:, None]
    >>> flow, v = dj.schedules.rectified_flow(), dj.parametrisations.velocity
    >>> options = dict(t=0.25, cond=None, schedule=flow, parametrisation=v)
    >>> output, scales = dj.denoisers.predict(network, jnp.ones((2, 1)), **options)
    >>> print(output.ravel(), *scales)  # 1 + 1000 t, then 1 - t and t
    [251. 251.] 0.75 0.25
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

    Args:
      network: (x, time_input (B,), cond) -> output of x's shape with twice its channels.
      x_t, t, cond, schedule, parametrisation, time_input: as in `predict`.

    Returns:
      The value (B, ...), the mix (B, ...), and the pair of scales, shaped to multiply x_t.

    Raises:
      ValueError: the output has not x_t's shape with twice its channels.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> network = lambda x, time_input, cond: jnp.concatenate([x, -jnp.ones_like(x)], axis=-1)
    >>> options = dict(schedule=dj.schedules.cosine(), parametrisation=dj.parametrisations.eps)
    >>> find = dj.denoisers.predict_with_variance
    >>> value, mix, scales = find(network, jnp.ones((1, 2)), t=500, cond=None, **options)
    >>> print(value, mix)  # v = -1 is the smaller variance, mix 0
    [[1. 1.]] [[0. 0.]]
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

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.6]])
    >>> network = lambda x, time_input, cond: jnp.full_like(x, 1.0)  # says that eps - x_0 is 1
    >>> denoise = dj.denoiser(network, flow, parametrisation=dj.parametrisations.velocity)
    >>> pair = denoise(x_t, 0.5)
    >>> print(pair.eps - pair.x_0, jnp.allclose(0.5 * pair.x_0 + 0.5 * pair.eps, x_t))
    [[1.]] True
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

    >>> import jax.numpy as jnp, diffjax as dj
    >>> network = lambda x, time_input, cond: jnp.concatenate([0 * x, jnp.ones_like(x)], axis=-1)
    >>> make, x0 = dj.denoisers.learned_variance_denoiser, dj.parametrisations.x0
    >>> pair = make(network, dj.schedules.cosine(), parametrisation=x0)(jnp.ones((1, 2)), 500)
    >>> print(pair.x_0, pair.variance_mix)  # v = 1 is the larger variance, mix 1
    [[0. 0.]] [[1. 1.]]
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

    Args:
      network: F, (x, time_input (B,), cond) -> output of x's shape.
      schedule: the noise schedule.
      sigma_data: the data's standard deviation, above 0.

    Raises:
      ValueError: sigma_data not above 0; when called, an output not of x_t's shape.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> network = lambda x, time_input, cond: jnp.zeros_like(x)  # F, before it has learnt anything
    >>> edm, x_t, t = dj.schedules.karras(), jnp.array([[0.5, -2.0]]), jnp.array([0.4])
    >>> exact = dj.denoisers.gaussian_denoiser(edm, std=0.5)  # of data N(0, sigma_data^2)
    >>> print((dj.edm_denoiser(network, edm)(x_t, t).x_0 / exact(x_t, t).x_0).round(2))  # c_skip
    [[1. 1.]]
    """
    return denoiser(
        network, schedule, parametrisation=edm(sigma_data), time_input=quarter_log_sigma
    )


@checked
def gaussian_denoiser(
    schedule: Schedule, *, mean: ArrayLike = 0.0, std: ArrayLike = 1.0
) -> Denoiser:
    """The exact denoiser of Gaussian data, x_0 ~ N(mean, std^2) in each dimension: no network.

    x_0 and x_t are jointly Gaussian, so that the estimates are linear regressions on x_t, and
    -eps / noise_scale is the score of q(x_t) = N(signal mean, signal^2 std^2 + noise^2). The
    probability-flow ODE moves x along its quantiles, (x - signal mean) / sqrt(signal^2 std^2 +
    noise^2) = constant. With that, what a new sampler, guidance or likelihood does has an answer to
    be compared with. `cond` is not looked at.

    Args:
      schedule: the noise schedule.
      mean, std: of the data; they broadcast against x_t.

    Returns:
      A denoiser: E[x_0 | x_t] and the eps that belongs to it.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.25, -1.0]])
    >>> pair = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)(x_t, 0.5)
    >>> print((0.5 - x_t) / (0.5**2 * 0.5**2 + 0.5**2))  # the score of N(signal mean, ...) at x_t
    [[0.8 4.8]]
    >>> print((-pair.eps / 0.5).round(1))
    [[0.8 4.8]]
    """

    centre, spread = jnp.asarray(mean), jnp.asarray(std)

    def denoise(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        signal, noise = scales_like(schedule, t, x_t)
        centred = (x_t - signal * centre) / ((signal * spread) ** 2 + noise**2)
        return Estimates(
            (centre + signal * spread**2 * centred).astype(x_t.dtype),
            (noise * centred).astype(x_t.dtype),
        )

    return denoise
