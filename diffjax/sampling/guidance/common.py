"""What the kinds of guidance share: scales, conditions, and pairs of estimates."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Integer

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.parametrisations import Estimates, eps_from_x0
from diffjax.process import broadcast, scales_like
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, Times

# A number, or a function of the time: t (scalar or (B,)) -> scales of t's shape.
Scale = float | Callable[[Array], Array]
# cond (any pytree of (B, ...) arrays) -> the tree of no condition.
Null = Callable[[Any], Any]


@checked
def no_label(labels: Integer[Array, "*shape"]) -> Integer[Array, "*shape"]:
    """-1 for every label: what a class-conditional `models.UNet` takes for no class.

    Args:
      labels: integers of any shape.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> print(dj.guidance.no_label(jnp.array([3, 7])))
    [-1 -1]
    """
    return jnp.full_like(labels, -1)


@checked
def scale_at(scale: Scale, t: Times, x: Data) -> Array:
    """The scale at t, shaped to multiply the images x.

    Args:
      scale: a number, or t -> scales of t's shape.
      t: scalar or (B,) times.
      x: (B, ...) images.

    Returns:
      A scalar or (B, 1, ..., 1), of x's type.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> images, t = jnp.ones((2, 8, 8, 3)), jnp.array([0.0, 1.0])
    >>> print(dj.guidance.scale_at(lambda t: 1 + 4 * t, t, images).ravel())
    [1. 5.]
    """
    value = scale(jnp.asarray(t)) if callable(scale) else jnp.asarray(scale)
    return broadcast(value.astype(x.dtype), x)


def one_scale(scale: Scale | None, papers_scale: float | None) -> Scale:
    """The scale in diffjax's convention (1: no guidance), from the one of the two that is given.

    Raises:
      ValueError: both or none are given.
    """
    if (scale is None) == (papers_scale is None):
        raise ValueError("give one of scale (1: no guidance) and papers_scale (0: no guidance)")
    if papers_scale is not None:
        return 1.0 + papers_scale
    assert scale is not None
    return scale


def needs_condition(cond: Any, what: str) -> None:
    """Raises ValueError for a tree without arrays, which is no condition."""
    if not jax.tree.leaves(cond):
        raise ValueError(
            f"{what} needs a condition: pass cond=..., or sample an unconditional model without it"
        )


@checked
def together(denoise: Denoiser, x_t: Data, t: Times, conds: Sequence[Any]) -> list[Estimates]:
    """The estimates of one x_t under several conditions, by one call on their concatenation.

    Args:
      denoise: x_t, t, cond -> Estimates.
      x_t: (B, ...).
      t: scalar or (B,).
      conds: trees of one structure, with (B, ...) leaves.

    Returns:
      One pair a condition.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> denoise = lambda x_t, t, cond: dj.Estimates(x_t + cond[:, None], x_t)
    >>> conds = jnp.array([10.0, 20.0]), jnp.array([0.0, 0.0])  # of two examples, twice
    >>> with_it, without = dj.guidance.together(denoise, jnp.ones((2, 1)), 0.5, conds)
    >>> print(with_it.x_0.ravel(), without.x_0.ravel())
    [11. 21.] [1. 1.]
    """
    n, batch = len(conds), len(x_t)
    t = jnp.asarray(t)
    both = denoise(
        jnp.concatenate([x_t] * n),
        jnp.concatenate([t] * n) if t.ndim else t,
        jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conds),
    )
    return [jax.tree.map(lambda e, i=i: e[i * batch : (i + 1) * batch], both) for i in range(n)]


def between(start: Estimates, end: Estimates, w: Array) -> Estimates:
    """start + w (end - start); the pair stays one, since its weights sum to 1."""
    return end._replace(
        x_0=start.x_0 + w * (end.x_0 - start.x_0), eps=start.eps + w * (end.eps - start.eps)
    )


def with_x0(pair: Estimates, x_0: Data, x_t: Data, t: Times, schedule: Schedule) -> Estimates:
    """The pair with another x_0 and the eps that belongs to it."""
    return pair._replace(x_0=x_0, eps=eps_from_x0(x_t, x_0, scales_like(schedule, t, x_t)))
