r"""Shortcut models: average velocities by self-consistency (Frans et al. 2024).

A step of size d is two steps of size d / 2, so that with x' = x_t - d/2 u(x_t, t, t - d/2)

    u(x_t, t, t - d) = 1/2 [ u(x_t, t, t - d/2) + u(x', t - d/2, t - d) ]                 (1)

(equation 5 of the paper). For d = 0, u is the velocity, which flow matching trains. The right-hand
side of (1) is a target, by the averaged network; nothing is differentiated in time. What is learnt
of small steps goes over into larger ones, level by level: errors add up on the way, which is why
`mean_flow` is better at one step; it is here as the baseline.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.flow_maps import AverageVelocity
from diffjax.losses.mean_flow import straight_path
from diffjax.process import broadcast
from diffjax.types import Array, Data, TimePerExample


@checked
def shortcut_error(
    velocity: AverageVelocity,
    x_0: Data,
    *,
    t: TimePerExample,
    d: Array,
    eps: Data,
    cond: Any = None,
    target: AverageVelocity | None = None,
) -> Data:
    """u(x_t, t, t - d) minus (1), or minus eps - x_0 where d = 0; of x_0's shape.

    Args:
      velocity: u, which is trained.
      x_0: (B, ...) data.
      t: (B,) times.
      d: (B,) step sizes, 0 <= d <= t.
      eps: (B, ...) standard normal noise.
      cond: what u is conditioned on, or None.
      target: the averaged network; by default `velocity` without a gradient.

    Returns:
      (B, ...).

    >>> import jax.numpy as jnp, diffjax as dj
    >>> x_0, eps = jnp.full((2, 1), 0.5), jnp.array([[1.0], [-2.0]])
    >>> exact = lambda x, t, s, cond: (x - 0.5) / t[:, None]  # all paths are straight, to 0.5
    >>> options = dict(t=jnp.array([0.8, 0.8]), d=jnp.array([0.0, 0.5]), eps=eps)
    >>> print(dj.shortcut.shortcut_error(exact, x_0, **options).ravel().round(2) + 0.0)
    [0. 0.]
    """
    teacher = target or velocity
    x_t = straight_path(x_0, eps, t)
    half = d / 2
    first = teacher(x_t, t, t - half, cond)
    second = teacher(x_t - broadcast(half, x_t) * first, t - half, t - d, cond)
    both = jnp.where(broadcast(d, x_t) > 0, (first + second) / 2, eps - x_0)
    return velocity(x_t, t, t - d, cond) - jax.lax.stop_gradient(both)


@checked
def step_sizes(u: Array, *, levels: int) -> Array:
    """(B,) uniform numbers in [0, 1) -> step sizes 1, 1/2, ..., 2^(1 - levels), each as often.

    Args:
      u: (B,) in [0, 1).
      levels: how many sizes there are.

    Raises:
      ValueError: fewer than one level.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> print(dj.shortcut.step_sizes(jnp.array([0.0, 0.3, 0.6, 0.9]), levels=4))
    [1.    0.5   0.25  0.125]
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, not {levels}")
    return 2.0 ** -jnp.floor(u * levels)
