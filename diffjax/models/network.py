"""The interface of networks, and its adapters for user-defined objects.

    init(key, x, t, cond) -> params
    apply(params, x, t, cond, *, train, key) -> output

    x     (B, ...) float32: x_t times the parametrisation's input scale
    t     (B,) float32 times, 0 (clean) to 1000 (noise) unless the parametrisation scales otherwise;
          (B, 2) with the span of a step where it is of average velocities
    cond  None or a `models.condition.Condition`: label (B,) int32 with -1 for none, text, map
    key   for dropout etc. if train is True; None otherwise

A network is an object with these two methods, or a pair of functions. It may have a third one,

    project(params) -> params

where parameters are kept on a set, such as weights of a fixed norm: the train step applies it to
the first parameters and after every update of the optimizer, whose moments stay as they are. None,
or no such method, is for parameters without a constraint. Linen and NNX modules are
adapted by `models.linen.from_linen` and `models.nnx.from_nnx`. `params` is a tree of arrays.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn

from diffjax.types import Array


class Network(Protocol):
    """A network as a pair of pure functions, and optionally a third, `project`."""

    def init(self, key: Array, x: Array, t: Array, cond: Any) -> Any:
        """Initial parameters for inputs of these shapes."""
        ...

    def apply(
        self, params: Any, x: Array, t: Array, cond: Any, *, train: bool = False, key: Any = None
    ) -> Array:
        """The output: (B, ..., C), or more channels if a variance or levels are predicted."""
        ...


class Pair(NamedTuple):
    """A pair of functions as a network.

    Attributes:
      init, apply: see `Network`.
    """

    init: Callable[..., Any]
    apply: Callable[..., Array]


def as_network(found: Any) -> Network:
    """A user's object as a network.

    Args:
      found: an object with init and apply, a pair (init, apply), or a Linen module.

    Raises:
      TypeError: an object of another type.
    """
    if isinstance(found, nn.Module):
        from diffjax.models.linen import from_linen

        return from_linen(found)
    if isinstance(found, tuple) and len(found) == 2 and all(map(callable, found)):
        return Pair(*found)
    if callable(getattr(found, "init", None)) and callable(getattr(found, "apply", None)):
        return found
    what = f"a {type(found).__name__}"
    if is_nnx(type(found)):
        raise TypeError(f"{what} is an NNX module: pass its class, or return from_nnx(make)")
    raise TypeError(
        f"{what} is not a network: expected a Linen module, an NNX class, a pair of functions, or "
        "an object with init(key, x, t, cond) and apply(params, x, t, cond, *, train, key)"
    )


def is_nnx(found: Any) -> bool:
    """Whether an object is a class of NNX modules; does not import flax.nnx."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(found, type) and issubclass(found, nnx.Module)
