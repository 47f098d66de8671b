r"""MeanFlow: a network of average velocities, trained from nothing (Geng et al. 2025).

On a straight path x_t = (1 - t) x_0 + t eps the average velocity between s and t is defined by

    (t - s) u(x_t, t, s) = int_s^t v(x_r, r) dr,    v = E[eps - x_0 | x_t]                (1)

Its derivative by t, along the path, has no integral left (equation 6 of the paper):

    u(x_t, t, s) = v(x_t, t) - (t - s) d/dt u(x_t, t, s)                                  (2)
    d/dt u       = v . grad_x u + du/dt                       s held fixed                (3)

(3) is one Jacobian-vector product, with the tangent (v, 1, 0) of (x_t, t, s). The loss makes (2)
true with the derivative's value held fixed:

    || u + (t - s) sg(d/dt u) - v ||^2                                                    (4)

Where s = t this is flow matching. v is known up to its expectation alone: in (4) a sample eps - x_0
may stand for it, since (4) is squared. In (3) it may not, but does in the paper ("data"), whose
loss then weighs the sample's deviation by grad u; the improved target (Geng et al. 2025b, iMF) has
the network's own u(x_t, t, t) there ("predicted"), for one more evaluation.

Guidance is trained in: v in both places becomes (equation 19)

    scale v + mix u(x_t, t, t | c) + (1 - scale - mix) u(x_t, t, t | nothing)             (5)

which has the effective guidance scale `scale` / (1 - `mix`); one evaluation then gives a guided
sample.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.flow_maps import AverageVelocity
from diffjax.process import broadcast
from diffjax.types import Array, Data, PerExample, TimePerExample

TANGENTS = ("data", "predicted")


@checked
def mean_flow_error(
    velocity: AverageVelocity,
    x_0: Data,
    *,
    t: TimePerExample,
    s: TimePerExample,
    eps: Data,
    cond: Any = None,
    target: Data | None = None,
    tangent: str = "data",
) -> Data:
    """What (4) squares: u + (t - s) sg(d/dt u) - v, of x_0's shape.

    Args:
      velocity: u, differentiable in x_t and t by `jax.jvp`.
      x_0: (B, ...) data.
      t, s: (B,) times, 0 <= s <= t <= 1.
      eps: (B, ...) standard normal noise.
      cond: what u is conditioned on, or None.
      target: v at x_t; by default eps - x_0. See `guided_velocity`.
      tangent: v in (3): "data", that is `target`, or "predicted", u(x_t, t, t).

    Returns:
      (B, ...).

    Raises:
      ValueError: an unknown tangent.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> x_0, eps = jnp.full((1, 2), 0.5), jnp.array([[1.0, -2.0]])
    >>> options = dict(t=jnp.array([0.8]), s=jnp.array([0.3]), eps=eps)
    >>> exact = lambda x, t, s, cond: (x - 0.5) / t[:, None]  # all paths are straight, to 0.5
    >>> error = dj.mean_flow.mean_flow_error
    >>> print(error(exact, x_0, **options).round(2) + 0.0)
    [[0. 0.]]
    >>> print(error(lambda x, t, s, cond: 0 * x, x_0, **options))  # x_0 - eps
    [[-0.5  2.5]]
    """
    if tangent not in TANGENTS:
        raise ValueError(f"tangent must be one of {', '.join(TANGENTS)}, not {tangent!r}")
    x_t = straight_path(x_0, eps, t)
    v = eps - x_0 if target is None else target
    along = v if tangent == "data" else jax.lax.stop_gradient(velocity(x_t, t, t, cond))
    u, slope = jax.jvp(
        lambda x_t, t: velocity(x_t, t, s, cond), (x_t, t), (along, jnp.ones_like(t))
    )
    return u + broadcast(t - s, x_t) * jax.lax.stop_gradient(slope) - v


@checked
def guided_velocity(
    velocity: AverageVelocity,
    x_0: Data,
    *,
    t: TimePerExample,
    eps: Data,
    cond: Any,
    null: Any,
    guided: Array,
    scale: float,
    mix: float = 0.0,
) -> Data:
    """(5), without a gradient: what `mean_flow_error` takes as its target.

    Args:
      velocity, x_0, t, eps: as in `mean_flow_error`.
      cond, null: the condition, and the null condition of the same shapes.
      guided: (B,) bool; other examples, those without a condition, keep eps - x_0.
      scale, mix: of (5).

    Returns:
      (B, ...).

    >>> import jax.numpy as jnp, diffjax as dj
    >>> x_0, eps = jnp.zeros((2, 1)), jnp.ones((2, 1))
    >>> cond, null = jnp.array([0, 1]), jnp.array([-1, -1])
    >>> options = dict(t=jnp.array([0.5, 0.5]), eps=eps, cond=cond, null=null)
    >>> u = lambda x, t, s, cond: jnp.full_like(x, 0.25)  # without a condition
    >>> guide = dj.mean_flow.guided_velocity
    >>> print(guide(u, x_0, guided=jnp.array([True, False]), scale=3.0, **options).ravel())
    [2.5 1. ]
    """
    x_t = straight_path(x_0, eps, t)
    without = velocity(x_t, t, t, null)
    v = scale * (eps - x_0) + (1 - scale - mix) * without
    if mix:
        v = v + mix * velocity(x_t, t, t, cond)
    return jax.lax.stop_gradient(jnp.where(broadcast(guided, x_0), v, eps - x_0))


@checked
def adaptive(squared: PerExample, *, power: float, eps: float = 1e-3) -> PerExample:
    """squared / sg((squared + eps)^power): an example's weight falls with its error.

    Geng et al. 2025, equation 22: 0 is the squared error, 1/2 about its root, 1 the same weight for
    each example; 0.75 is the paper's for CIFAR-10.

    Args:
      squared: (B,) squared errors.
      power: p of the paper, at least 0.
      eps: c of the paper.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> squared = jnp.array([1.0, 100.0])
    >>> for power in (0.0, 0.5, 1.0):
    ...     print(dj.mean_flow.adaptive(squared, power=power).round())
    [  1. 100.]
    [ 1. 10.]
    [1. 1.]
    """
    return squared / jax.lax.stop_gradient(squared + eps) ** power


@checked
def straight_path(x_0: Data, eps: Data, t: TimePerExample) -> Data:
    """x_t = (1 - t) x_0 + t eps.

    Args:
      x_0, eps: (B, ...).
      t: (B,) in [0, 1].

    >>> import jax.numpy as jnp, diffjax as dj
    >>> x_0, eps = jnp.zeros((3, 1)), jnp.ones((3, 1))
    >>> print(dj.mean_flow.straight_path(x_0, eps, jnp.array([0.0, 0.25, 1.0])).ravel())
    [0.   0.25 1.  ]
    """
    share = broadcast(t, x_0)
    return (1 - share) * x_0 + share * eps
