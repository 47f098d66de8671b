r"""The forward process q and its posterior, for any schedule and any pair of times s < t.

From the marginals x_t = signal_t x_0 + noise_t eps alone (schedules, equation 1):

    q(x_t | x_s)      = N(signal_ts x_s, var_ts)                                      (1)
    signal_ts         = signal_t / signal_s
    var_ts            = noise_t^2 - signal_ts^2 noise_s^2                             (2)
    q(x_s | x_t, x_0) = N(mean, variance)                                             (3)
    mean              = signal_ts noise_s^2 / noise_t^2 x_t + signal_s var_ts / noise_t^2 x_0
    variance          = var_ts noise_s^2 / noise_t^2

With s = t - 1 on a discrete schedule, var_ts is DDPM's beta_t and (3) is its mu-tilde and
beta-tilde (Ho et al. 2020, equations 6 and 7); with s < t - 1 it is what "respacing" computes from
a shortened table (Kingma et al. 2021, VDM, appendix A).

Times are scalars or (B,) arrays; images are (B, ...) arrays.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffjax.checks import checked
from diffjax.schedules import Scales, Schedule
from diffjax.types import Array, ArrayLike, Data, Numbers, Times


class Gaussian(NamedTuple):
    """A diagonal Gaussian. mean: (B, ...); variance, log_variance: broadcast against it."""

    mean: Data
    variance: Array
    log_variance: Array


@checked
def broadcast(a: ArrayLike, x: Data) -> Array:
    """A scalar or (B,) array, with axes added so that it multiplies (B, ...) images.

    Args:
      a: scalar or (B,).
      x: (B, ...) data.

    Returns:
      A scalar, or (B, 1, ..., 1) of x's number of axes.

    Raises:
      ValueError: any other shape.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> images = jnp.ones((2, 28, 28, 1))
    >>> dj.process.broadcast(jnp.array([0.0, 1.0]), images).shape
    (2, 1, 1, 1)
    """
    a = jnp.asarray(a)
    if a.ndim and a.shape != x.shape[:1]:
        raise ValueError(f"times must be a scalar or one an example, {x.shape[:1]}, not {a.shape}")
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim)) if a.ndim else a


@checked
def scales_like(schedule: Schedule, t: Times, x: Data) -> Scales[Array]:
    """schedule(t), each shaped to multiply the images x: (B, 1, ..., 1) or scalar.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, images = dj.schedules.rectified_flow(), jnp.ones((2, 28, 28, 1))
    >>> signal, noise = dj.process.scales_like(flow, jnp.array([0.25, 0.5]), images)
    >>> print(signal.shape, (signal * images)[:, 0, 0, 0])  # 1 - t
    (2, 1, 1, 1) [0.75 0.5 ]
    """
    scales = schedule(jnp.asarray(t))
    return Scales(broadcast(scales.signal_scale, x), broadcast(scales.noise_scale, x))


@checked
def q_sample(schedule: Schedule, x_0: Data, *, t: Times, eps: Data) -> Data:
    """Draws x_t ~ q(x_t | x_0) in closed form: signal_scale x_0 + noise_scale eps.

    Ho et al. 2020, equation 4.

    Args:
      schedule: the noise schedule.
      x_0: (B, ...) data.
      t: scalar or (B,) times.
      eps: standard normal noise of x_0's shape.

    Returns:
      x_t, of x_0's shape.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow = dj.schedules.rectified_flow()
    >>> dj.q_sample(flow, jnp.ones((1, 2)), t=0.25, eps=jnp.zeros((1, 2))).tolist()
    [[0.75, 0.75]]
    """
    signal, noise = scales_like(schedule, t, x_0)
    return signal * x_0 + noise * eps


@checked
def q_step(schedule: Schedule, x_s: Data, *, s: Times, t: Times, eps: Data) -> Data:
    """Draws x_t ~ q(x_t | x_s), s < t, by equation (1): one step of the chain.

    With s = t - 1 it is DDPM's (Ho et al. 2020, equation 2).

    Args:
      schedule: the noise schedule.
      x_s: (B, ...) data at time s.
      s, t: scalar or (B,) times, s < t.
      eps: standard normal noise of x_s's shape.

    Returns:
      x_t, of x_s's shape.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> cosine, x_0 = dj.schedules.cosine(100), jnp.ones((32, 32))
    >>> eps_s, eps_t = (jax.random.normal(jax.random.key(seed), (32, 32)) for seed in (0, 1))
    >>> x_s = dj.q_sample(cosine, x_0, t=30, eps=eps_s)
    >>> x_t = dj.q_step(cosine, x_s, s=30, t=60, eps=eps_t)
    >>> print(f"{x_t.std():.1f} {cosine(60).noise_scale:.1f}")  # as if from x_0 at once
    0.8 0.8
    """
    signal_ts, var_ts = transition(scales_like(schedule, s, x_s), scales_like(schedule, t, x_s))
    return signal_ts * x_s + jnp.sqrt(var_ts) * eps


@checked
def transition(scales_s: Scales[Numbers], scales_t: Scales[Numbers]) -> tuple[Numbers, Numbers]:
    """signal_ts and var_ts of equation (2); NumPy in, NumPy (float64) out.

    Args:
      scales_s, scales_t: the pairs at s and t, s < t, of any shapes that broadcast.

    >>> import numpy as np, diffjax as dj
    >>> ddpm = dj.schedules.linear_beta(1000)
    >>> signal_ts, var_ts = dj.process.transition(ddpm(np.array(999)), ddpm(np.array(1000)))
    >>> print(var_ts.round(6), (signal_ts**2).round(6))  # beta_T and alpha_T = 1 - beta_T
    0.02 0.98
    """
    signal_ts = scales_t.signal_scale / scales_s.signal_scale
    # Any, since a float is NumPy's here and has `clip`.
    var_ts: Any = scales_t.noise_scale**2 - (signal_ts * scales_s.noise_scale) ** 2
    # Rounding may take a vanishing step's variance below zero.
    return signal_ts, var_ts.clip(min=0)


@checked
def posterior_coefficients(
    scales_s: Scales[Numbers], scales_t: Scales[Numbers]
) -> tuple[Numbers, Numbers, Numbers]:
    """(coefficient of x_t, coefficient of x_0, variance) of equation (3).

    Args:
      scales_s, scales_t: as in `transition`, with noise at t.

    Returns:
      NumPy for NumPy, JAX arrays for JAX arrays.

    >>> import numpy as np, diffjax as dj
    >>> flow = dj.schedules.rectified_flow()
    >>> s, t = flow(np.array(0.0)), flow(np.array(0.5))
    >>> print(*(float(c) for c in dj.process.posterior_coefficients(s, t)))  # at s = 0 it is x_0
    0.0 1.0 0.0
    """
    signal_ts, var_ts = transition(scales_s, scales_t)
    noise_s, noise_t = scales_s.noise_scale, scales_t.noise_scale
    return (
        signal_ts * (noise_s / noise_t) ** 2,
        scales_s.signal_scale * var_ts / noise_t**2,
        var_ts * (noise_s / noise_t) ** 2,
    )


@checked
def q_posterior(schedule: Schedule, x_t: Data, *, x_0: Data, s: Times, t: Times) -> Gaussian:
    """The posterior q(x_s | x_t, x_0), s < t, of equation (3).

    Args:
      schedule: the noise schedule.
      x_t: (B, ...) data at time t.
      x_0: clean data (or a network's estimate), of x_t's shape.
      s, t: scalar or (B,) times, t_min <= t, s < t.

    Returns:
      mean (B, ...), variance and log-variance. Where the variance is 0 (at s = 0), the logarithm is
      clipped: to that of beta-tilde_2 on a discrete schedule, as DDPM's code does; to that of 1e-20
      on a continuous one.

    >>> import jax.numpy as jnp, numpy as np, diffjax as dj
    >>> ddpm, x = dj.schedules.linear_beta(1000), jnp.ones((1, 1))
    >>> posterior = dj.q_posterior(ddpm, x, x_0=x, s=1, t=2)
    >>> beta, alpha_bar = ddpm.beta, ddpm.alpha_bar  # DDPM's, equation 7
    >>> beta_tilde = (1 - alpha_bar[1]) / (1 - alpha_bar[2]) * beta[2]
    >>> print(f"{posterior.variance.item() / beta_tilde:.3f}")
    1.000
    """
    scales_s, scales_t = scales_like(schedule, s, x_t), scales_like(schedule, t, x_t)
    of_x_t, of_x_0, variance = posterior_coefficients(scales_s, scales_t)
    return Gaussian(
        of_x_t * x_t + of_x_0 * x_0,
        variance,
        jnp.log(jnp.where(variance > 0, variance, smallest_variance(schedule))),
    )


@checked
def smallest_variance(schedule: Schedule) -> float:
    """beta-tilde_2 of a discrete schedule, the variance that DDPM lends to t = 1; else 1e-20.

    >>> import diffjax as dj
    >>> ddpm = dj.schedules.linear_beta(1000)
    >>> print(f"{dj.process.smallest_variance(ddpm) / ddpm.beta[1]:.2f} beta_1")  # beta-tilde_2
    0.55 beta_1
    """
    if not schedule.discrete or schedule.T < 2:
        return 1e-20
    return float(posterior_coefficients(schedule(np.array(1)), schedule(np.array(2)))[2])
