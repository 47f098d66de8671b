"""An NNX module as a network.

    network = from_nnx(MyTransformer, depth=12)
    params = network.init(key, x, t, cond)

An NNX module holds its own parameters. Here they are separated by `nnx.split` and merged again by
`nnx.merge` at each call. RNG streams (e.g. dropout's) are seeded from the call's key, so that they
are a function of (seed, step).
"""

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from diffjax.types import Array


class NNXNetwork:
    """See `models.network.Network`."""

    def __init__(self, make: Callable[..., nnx.Module]) -> None:
        """`make(rngs=nnx.Rngs(...))` returns the module, called as module(x, t, cond[, train])."""
        self._make = make

    def init(self, key: Array, x: Array, t: Array, cond: Any) -> Any:
        """The parameters as nested dictionaries; NNX does not need x, t and cond for shapes."""
        del x, t, cond
        _, params, _ = _split(self._make(rngs=nnx.Rngs(key)))
        return _to_dict(params)

    def apply(
        self, params: Any, x: Array, t: Array, cond: Any, *, train: bool = False, key: Any = None
    ) -> Array:
        """The output; every RNG stream has its own key derived from `key`."""
        graph, shapes, streams = self._structure
        filled = jax.tree.unflatten(jax.tree.structure(shapes), _leaves_like(shapes, params))
        module = nnx.merge(graph, filled, _started(streams, key))
        (module.train if train else module.eval)()
        takes_train = "train" in inspect.signature(type(module).__call__).parameters
        return module(x, t, cond, **({"train": train} if takes_train else {}))

    @cached_property
    def _structure(self) -> tuple[Any, Any, Any]:
        """The graph, and the shapes of the parameters and RNG streams."""
        return _split(nnx.eval_shape(lambda: self._make(rngs=nnx.Rngs(0))))


def from_nnx(make: Callable[..., nnx.Module], **fields: Any) -> NNXNetwork:
    """An NNX class, or a function of `rngs` that returns a module, as a network.

    Args:
      make: called as make(**fields, rngs=...).
      **fields: its other arguments.

    Raises (by `init`):
      ValueError: the module has variables that are neither parameters nor RNG streams, such as
        batch statistics, which would never be updated.
    """

    def make_module(*, rngs: nnx.Rngs) -> nnx.Module:
        return make(**fields, rngs=rngs)

    return NNXNetwork(make_module)


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    graph, params, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    found = _variables(rest)
    others = sorted({type(leaf).__name__ for leaf in found if isinstance(leaf, nnx.Variable)})
    if len(found) > len(others) == 0:
        raise ValueError(
            f"{type(module).__name__} has array attributes other than nnx.Param: compute them in "
            "__call__, or make them NumPy constants of the class"
        )
    if others:
        raise ValueError(
            f"{type(module).__name__} has variables of the types {', '.join(others)}, which "
            "training would not update: expected nnx.Param only; use e.g. GroupNorm or LayerNorm "
            "instead of BatchNorm"
        )
    return graph, params, streams


def _variables(state: Any) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _to_dict(params: Any) -> Any:
    """NNX's state as nested dictionaries with string keys, as needed by checkpoints."""

    def texts(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {str(key): texts(value) for key, value in tree.items()}
        return tree

    return texts(nnx.to_pure_dict(params))


def _leaves_like(shapes: Any, params: Any) -> list[Any]:
    """The leaves of nested dictionaries in the order of NNX's state."""
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        shapes, is_leaf=lambda x: isinstance(x, nnx.Variable)
    ):
        del leaf
        value = params
        for entry in path:
            value = value[str(getattr(entry, "key", getattr(entry, "idx", entry)))]
        leaves.append(value)
    return leaves


def _started(streams: Any, key: Any) -> Any:
    """The streams with counts of 0 and keys derived from one key."""
    key = jax.random.key(0) if key is None else key  # unused outside of training
    leaves, structure = jax.tree.flatten(streams)
    started = []
    for number, leaf in enumerate(leaves):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            started.append(jax.random.fold_in(key, number))
        else:
            started.append(jnp.zeros(leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, started)
