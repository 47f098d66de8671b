"""Memory: what a denoiser hands on from one step of a sampler to the next.

A denoiser is a function of (x_t, t, cond) alone. One that also looks back, such as guidance with
momentum or a self-conditioned network that is shown its estimate of the step before, has a `Slot`,

    slot = Slot()

    def denoise(x_t, t, cond=None):
        before = slot.read(x_t)  # zeros of x_t's shape at the first step
        ...
        slot.write(now)

and is sampled with `carried(sampler)` in place of the sampler. The values are part of the carry of
the samplers' loop, so nothing outlives a call and a sampler stays a pure function. All evaluations
within a step read what the step before has written, and the first one writes: Heun's second
evaluation of a step leaves the memory as it is.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.types import Array, Data

__all__ = ["Slot", "carried"]


class _Scope:
    """The slots of one call of a sampler; values are there while a step is traced."""

    def __init__(self) -> None:
        self.shapes: dict[Slot, jax.ShapeDtypeStruct] = {}
        self.before: dict[Slot, Array] | None = None
        self.after: dict[Slot, Array] = {}
        self.listing = False  # whether `carried` is finding out which slots there are


_scope: ContextVar[_Scope | None] = ContextVar("memory of the sampler that runs", default=None)


class Slot:
    """A place for one array that a denoiser hands on to the next step."""

    def read(self, like: Array) -> Array:
        """What the step before wrote; zeros of like's shape and type at the first step.

        Raises:
          ValueError: the sampler was not made by `carried`, or has no memory.
        """
        scope = _scope.get()
        if scope is not None and scope.listing:
            scope.shapes[self] = jax.ShapeDtypeStruct(like.shape, like.dtype)
            return jnp.zeros_like(like)
        if scope is None or scope.before is None:
            raise ValueError(
                "this denoiser hands something on from step to step: sample with "
                "dj.memory.carried(sampler) in place of the sampler, and none but those that run "
                "over a grid step by step (not adaptive)"
            )
        return scope.before[self]

    def write(self, value: Array) -> None:
        """Hands the value on, unless an earlier evaluation of the same step has."""
        scope = _scope.get()
        if scope is not None:
            scope.after.setdefault(self, value)


def carried(sampler: Callable[..., Any]) -> Callable[..., Any]:
    """The sampler whose denoiser may have memory, with the same arguments and results.

    Costs one more trace of the denoiser, which is not compiled. Without slots it is the sampler.

    Args:
      sampler: any that runs `loop.run` and evaluates the denoiser in each step, outside of
        branches: not `adaptive` or `restart`.

    Raises (when called):
      ValueError: the sampler is not such a one, or the denoiser was jitted on its own.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> count = dj.memory.Slot()
    >>> def denoise(x_t, t, cond=None):
    ...     steps = count.read(x_t)
    ...     count.write(steps + 1)
    ...     return dj.Estimates(steps, x_t)
    >>> grid = dj.grids.trailing(dj.schedules.rectified_flow(), 5)
    >>> dj.memory.carried(dj.samplers.ddim)(denoise, jnp.ones((1, 1)), grid=grid).x_0.item()
    4.0
    """

    @functools.wraps(sampler)
    def sample(
        denoise: Denoiser, x_T: Data, *, grid: Grid, cond: Any = None, **options: Any
    ) -> Any:
        scope = _Scope()
        token = _scope.set(scope)
        try:
            scope.listing = True
            t = jnp.asarray(grid.t[0], None if grid.t.dtype.kind == "i" else x_T.dtype)
            jax.eval_shape(lambda x: denoise(x, t, cond), x_T)
            scope.listing = False
            found = sampler(denoise, x_T, grid=grid, cond=cond, **options)
        except jax.errors.UnexpectedTracerError as error:
            raise ValueError(
                "the sampler, or what is around the denoiser, evaluates it in a branch or loop of "
                "its own, out of which nothing can be handed on: take another, such as euler"
            ) from error
        finally:
            _scope.reset(token)
        return found

    return sample


def through(step: Callable[..., Any], carry: Any) -> tuple[Callable[..., Any], Any]:
    """A sampler's step, and its first carry, with the memory as a part of the carry.

    Both as they are where `carried` is not around the sampler.
    """
    scope = _scope.get()
    if scope is None or not scope.shapes:
        return step, carry
    slots = tuple(scope.shapes)

    def remembering(state: Any, *inputs: Any) -> tuple[Any, Data]:
        carry, values = state
        scope.before, scope.after = dict(zip(slots, values, strict=True)), {}
        carry, x_s = step(carry, *inputs)
        after, scope.before = scope.after, None
        if len(after) < len(slots):
            raise ValueError(
                "a denoiser with memory wrote nothing in a step: jit the call of the sampler, not "
                "the denoiser"
            )
        return (carry, tuple(after[slot].astype(scope.shapes[slot].dtype) for slot in slots)), x_s

    zeros = tuple(jnp.zeros(scope.shapes[slot].shape, scope.shapes[slot].dtype) for slot in slots)
    return remembering, (carry, zeros)
