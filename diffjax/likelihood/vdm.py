r"""The variational bound in continuous time (Kingma et al. 2021, "Variational diffusion models").

For a variance preserving schedule on t in [0, 1] and data on discrete levels,

    -log p(x) <= KL(q(x_1 | x) || N(0, I))                              the prior        (1)
                 - E log p(x | x_0)                                     reconstruction   (2)
                 + 1/2 E_t [ -SNR'(t) (x - estimate(x_t, t))^2 ]        diffusion        (3)

(their equations 3 and 17), where x_0 here is the data with the noise of t = 0, and p(x | x_0) is

    p(x = l_k | x_0) proportional to N(x_0; signal l_k, noise^2)                         (4)

(their section 4.1) or a network's own distribution (`categorical`). -SNR' = fall SNR with
fall = -d log SNR / dt, so that (3) is the squared error of eps times fall / 2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax import categorical
from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.likelihood.bits import bits_per_dim
from diffjax.process import q_sample, scales_like
from diffjax.schedules import Scales, Schedule
from diffjax.types import Array, Data, PerExample, TimePerExample

# (x, x_0 noisy at t = 0) -> log p(x | x_0), (B, ...), in nats an element.
Decoder = Callable[[Data, Data], Data]


class VdmBound(NamedTuple):
    """The bound's parts in bits per dimension, (B,) each; total is their sum."""

    prior: PerExample
    reconstruction: PerExample
    diffusion: PerExample
    total: PerExample


def _mean(x: Data) -> PerExample:
    return x.mean(tuple(range(1, x.ndim)))


@checked
def prior_term(x: Data, log_snr: Array) -> PerExample:
    """Equation (1) at the log-SNR of t = 1, in nats per dimension: (B,)."""
    # For signal^2 = s: (s x^2 - s - log(1 - s)) / 2.
    s = jax.nn.sigmoid(log_snr)
    return (s * (_mean(jnp.square(x)) - 1) + jax.nn.softplus(log_snr)) / 2


@checked
def level_decoder(scales: Scales[Array], *, levels: int = 256) -> Decoder:
    """Equation (4): each level alike before x_0 is seen.

    Args:
      scales: the pair at t = 0.
      levels: of the data.
    """

    def log_prob(x: Data, x_0: Data) -> Data:
        flat = jnp.zeros((*x.shape[:-1], x.shape[-1] * levels), jnp.float32)
        return categorical.log_prob(flat, x_0, x_0=x, scales=scales)

    return log_prob


@checked
def diffusion_term(x: Data, estimate: Data, *, log_snr: PerExample, fall: PerExample) -> PerExample:
    """Equation (3)'s integrand of each example at its own time, in nats per dimension: (B,).

    Args:
      x: (B, ...) data.
      estimate: the network's, of x's shape.
      log_snr: (B,) at t.
      fall: (B,) -d log SNR / dt at t.
    """
    return fall / 2 * jnp.exp(log_snr) * _mean(jnp.square(x - estimate))


@checked
def vdm_bound(
    denoise: Denoiser,
    x: Data,
    *,
    schedule: Schedule,
    t: TimePerExample,
    eps: Data,
    eps_0: Data,
    cond: Any = None,
    decoder: Callable[[Scales], Decoder] | None = None,
) -> VdmBound:
    """One draw of the bound for each example; its mean over t, eps and eps_0 is the bound.

    Args:
      denoise: x_t, t, cond -> Estimates.
      x: (B, ...) data on even levels in [-1, 1].
      schedule: continuous and variance preserving; its ends are the model's.
      t: (B,) times, uniform in [0, 1]: stratified over the batch for a lower variance.
      eps: (B, ...) standard normal noise, of x_t.
      eps_0: (B, ...) standard normal noise, of the reconstruction.
      cond: passed to the denoiser.
      decoder: the pair at t = 0 -> equation (2)'s distribution; by default `level_decoder`, which
        is (4) with 256 levels.

    Raises:
      ValueError: a discrete schedule, noise of another shape than x, or t not one an example.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> schedule, x, zeros = dj.schedules.linear_log_snr(), jnp.ones((1, 4)), jnp.zeros((1, 4))
    >>> denoise = dj.denoisers.gaussian_denoiser(schedule, mean=1.0, std=0.0)  # knows the data
    >>> options = dict(schedule=schedule, t=jnp.array([0.3]), eps=zeros, eps_0=zeros)
    >>> bound = jax.jit(lambda x: dj.likelihood.vdm_bound(denoise, x, **options))(x)
    >>> print(*(bool(abs(part.item()) < 0.01) for part in bound))  # and needs no bits
    True True True True
    """
    drawn = diffusion_draw(denoise, x, schedule=schedule, t=t, eps=eps, cond=cond)
    start = scales_like(schedule, jnp.zeros(()), x)
    decode = (decoder or level_decoder)(start)
    parts = (
        prior_term(x, schedule.log_snr(jnp.ones(()))),
        -_mean(decode(x, start.signal_scale * x + start.noise_scale * eps_0)),
        drawn.value,
    )
    prior, reconstruction, diffusion = (bits_per_dim(part, dimensions=1) for part in parts)
    return VdmBound(prior, reconstruction, diffusion, prior + reconstruction + diffusion)


class DiffusionSample(NamedTuple):
    """Equation (3)'s integrand in nats per dimension, and where it was drawn: (B,) each.

    value / fall is the same per unit of log-SNR, which does not depend on the schedule.
    """

    value: PerExample
    log_snr: PerExample
    fall: PerExample


@checked
def diffusion_draw(
    denoise: Denoiser,
    x: Data,
    *,
    schedule: Schedule,
    t: TimePerExample,
    eps: Data,
    cond: Any = None,
) -> DiffusionSample:
    """The diffusion term at one time an example; arguments and errors as in `vdm_bound`."""
    if schedule.discrete:
        raise ValueError("this bound is of continuous time: for a discrete schedule take vlb")
    t = jnp.asarray(t, jnp.float32)
    log_snr, slope = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
    estimate = denoise(q_sample(schedule, x, t=t, eps=eps), t, cond).x_0
    value = diffusion_term(x, estimate, log_snr=log_snr, fall=-slope)
    return DiffusionSample(value, log_snr, -slope)
