r"""Consistency: where the ODE's path through x_t ends, by comparing two points of one path.

The consistency function f(x_t, t) is the end x_0 of the path (Song et al. 2023). It is the same for
all points of a path and the identity at time 0, and these two say all of it. With s < t,

    loss = w(t, s) distance(f(x_t, t), sg f(x_s, s)),     f(x_0, 0) = x_0                 (1)

Two ways to have a second point of the path:

    tuning        x_s = signal_s x_0 + noise_s eps, with x_t's own x_0 and eps            (2)
    distillation  x_s is one step of a teacher's ODE from x_t                             (3)

(2) is a Monte Carlo estimate of (3) by the velocity's conditional expectation, right in the limit
s -> t. With s = 0 both are a denoiser's training. That is the way of "easy consistency tuning"
(Geng et al. 2024): any diffusion model is f at first, and s moves from 0 towards t by

    sigma_s = sigma_t (1 - n(sigma_t) / q^(stage + 1)),   n(sigma) = 1 + k sigmoid(-b sigma)    (4)

and w = 1 / (sigma_t - sigma_s), sigma = noise_scale / signal_scale (equations 13 to 15 there).
f is the denoiser's estimate of x_0, whatever its schedule and parametrisation. EDM's is the
identity without noise by construction. One that predicts x_0 outright has to learn that, from the
few pairs with s = 0, and a constant is as consistent: `anchored` mends it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.flow_maps import ddim_map
from diffjax.losses.distances import Distance
from diffjax.parametrisations import Estimates
from diffjax.process import broadcast, q_sample
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, PerExample, TimePerExample, Times


@checked
def consistency_loss(
    student: Denoiser,
    x_0: Data,
    *,
    target: Denoiser,
    schedule: Schedule,
    t: TimePerExample,
    s: TimePerExample,
    eps: Data,
    distance: Distance,
    cond: Any = None,
    teacher: Denoiser | None = None,
) -> PerExample:
    """(1) for each example.

    Args:
      student: f, as a denoiser.
      x_0: (B, ...) data.
      target: f at s; no gradient goes through it. The student with the same dropout mask.
      schedule: of both.
      t, s: (B,) times, 0 <= s < t; s = 0 is clean data.
      eps: (B, ...) standard normal noise.
      distance: (B, ...), (B, ...) -> (B,).
      cond: passed to the denoisers.
      teacher: whose ODE gives x_s, (3), by Heun's rule; None for (2).

    Returns:
      (B,), weighted by 1 / (sigma_t - sigma_s).

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_0, t = dj.schedules.rectified_flow(), jnp.array([[0.5]]), jnp.array([0.5])
    >>> options = dict(schedule=flow, t=t, s=jnp.array([0.25]), eps=jnp.array([[2.0]]))
    >>> options |= dict(distance=dj.distances.squared_error)
    >>> f = dj.denoisers.gaussian_denoiser(flow, mean=0.5, std=0.0)  # all paths end at 0.5
    >>> print(dj.consistency.consistency_loss(f, x_0, target=f, **options))
    [0.]
    >>> zero = lambda x_t, t, cond: dj.Estimates(0 * x_t, x_t)
    >>> loss = dj.consistency.consistency_loss(zero, x_0, target=f, **options)
    >>> print(f"{loss.item():.3f}")  # 0.5^2 / (1 - 1/3)
    0.375
    """
    x_t = q_sample(schedule, x_0, t=t, eps=eps)
    if teacher is None:
        x_s = q_sample(schedule, x_0, t=s, eps=eps)
    else:
        x_s = _heun(teacher, x_t, schedule=schedule, t=t, s=s, cond=cond)
    # At s = 0 the point is f's own value: a network is not asked at a time without noise.
    clean = broadcast(sigma(schedule, s) == 0, x_0)
    asked = jnp.maximum(s, jnp.asarray(schedule.t_min, s.dtype))
    end = jnp.where(clean, x_s, target(x_s, asked, cond).x_0)
    far = distance(student(x_t, t, cond).x_0, jax.lax.stop_gradient(end))
    return far / (sigma(schedule, t) - sigma(schedule, s))


@checked
def anchored(denoise: Denoiser, schedule: Schedule, *, noise: float) -> Denoiser:
    """The denoiser, whose estimate of x_0 goes over to x_t / signal_scale where there is no noise.

        x_0 = (1 - g) D(x_t, t) + g x_t / signal_scale,     g = noise^2 / (sigma^2 + noise^2)

    The skip connection of Song et al. 2023, equation 5, for a small `noise` in place of the data's
    standard deviation: estimates at larger noise stay as they are.

    Args:
      denoise: D.
      schedule: of t.
      noise: the sigma at which both count equally; above 0.

    Raises:
      ValueError: noise not above 0.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.5]])
    >>> zero = lambda x_t, t, cond: dj.Estimates(0 * x_t, x_t)
    >>> f = jax.jit(dj.consistency.anchored(zero, flow, noise=1.0))
    >>> for t in (0.0, 0.5, 1.0):  # without noise x_t itself, at sigma 1 half of x_t / 0.5
    ...     print(f(x_t, t).x_0)
    [[0.5]]
    [[0.5]]
    [[0.]]
    """
    if not noise > 0:
        raise ValueError(f"noise must be above 0, not {noise}")

    def anchored_denoise(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        found = denoise(x_t, t, cond)
        times = jnp.broadcast_to(jnp.asarray(t), x_t.shape[:1])
        signal = broadcast(schedule(times).signal_scale, x_t)
        near = broadcast(noise**2 / (sigma(schedule, times) ** 2 + noise**2), x_t)
        # Where the signal vanishes, so does `near`, and x_t / signal may be infinite.
        skip = jnp.where(signal > 0, x_t / jnp.maximum(signal, 1e-20), 0.0)
        return found._replace(x_0=(1 - near) * found.x_0 + near * skip)

    return anchored_denoise


@checked
def nearer_time(
    schedule: Schedule,
    t: TimePerExample,
    *,
    stage: Array,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
) -> TimePerExample:
    """s by (4), (B,) of t's kind; 0 where the right-hand side is not above 0.

    Args:
      schedule: the noise schedule.
      t: (B,) times.
      stage: 0, 1, 2 ...: how often q has been multiplied on.
      q: above 1: by how much the gap shrinks from stage to stage.
      k, b: of n.

    Raises:
      ValueError: q not above 1, or k or b below 0.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> edm, t = dj.schedules.karras(), jnp.array([1.0])  # sigma 80, where n is 1
    >>> find = dj.consistency.nearer_time
    >>> nearer = jax.jit(lambda stage: edm(find(edm, t, stage=stage)).noise_scale)
    >>> for stage in (0, 1, 5):  # 80 (1 - 1 / 2^(stage + 1))
    ...     print(f"{nearer(stage).item():.2f}")
    40.00
    60.00
    78.75
    """
    if not q > 1:
        raise ValueError(f"q must be above 1, not {q}")
    if min(k, b) < 0:
        raise ValueError(f"k and b must be at least 0, not {k} and {b}")
    at_t = sigma(schedule, t)
    # n is 1 for large sigmas, also where sigma is infinite.
    ratio = 1 - (1 + k * jax.nn.sigmoid(-b * at_t)) / q ** (stage + 1.0)
    at_s = jnp.maximum(at_t * ratio, 0.0)
    if schedule.discrete:
        found = jnp.floor(schedule.time(-2 * jnp.log(at_s))).astype(t.dtype)
        return jnp.where(at_s > 0, jnp.clip(found, 0, t - 1), 0)
    # Rounding would close a gap of less than float32's resolution.
    found = jnp.clip(schedule.time(-2 * jnp.log(at_s)), 0.0, t * (1 - 1e-4))
    return jnp.where(at_s > 0, found, 0.0)


@checked
def sigma(schedule: Schedule, t: TimePerExample) -> PerExample:
    """noise_scale / signal_scale.

    Args:
      schedule: the noise schedule.
      t: (B,) times.

    Returns:
      (B,), infinite where there is no signal.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> print(dj.consistency.sigma(dj.schedules.rectified_flow(), jnp.array([0.5, 0.75])).round(2))
    [1. 3.]
    """
    signal, noise = schedule(t)
    return noise / signal


def _heun(
    teacher: Denoiser, x_t: Data, *, schedule: Schedule, t: Array, s: Array, cond: Any
) -> Data:
    """x_s by Heun's rule in sigma, of x / signal_scale; Euler's where s = 0."""
    euler = ddim_map(teacher, schedule)(x_t, t, s, cond)
    asked = jnp.maximum(s, jnp.asarray(schedule.t_min, s.dtype))
    signal_t, signal_s = (broadcast(schedule(time).signal_scale, x_t) for time in (t, s))
    step = broadcast(sigma(schedule, s) - sigma(schedule, t), x_t)
    # d(x / signal) / d sigma = eps.
    slopes = (teacher(x_t, t, cond).eps + teacher(euler, asked, cond).eps) / 2
    heun = signal_s * (x_t / signal_t + step * slopes)
    return jnp.where(broadcast(sigma(schedule, s) == 0, x_t), euler, heun)
