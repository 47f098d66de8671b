"""An NNX module as a network.

    network = from_nnx(MyTransformer, depth=12)
    params = network.init(key, x, t, cond)

NNX keeps parameters in the module. Here the module's structure is kept and its parameters are
handed in: `nnx.split` at the start, `nnx.merge` at each call. Streams of random numbers (dropout's)
are filled from the call's key, so that a step's randomness follows from (seed, step) as all else.
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
        """The parameters as nested dictionaries; NNX knows shapes without x, t and cond."""
        del x, t, cond
        _, params, _ = _split(self._make(rngs=nnx.Rngs(key)))
        return _to_dict(params)

    def apply(
        self, params: Any, x: Array, t: Array, cond: Any, *, train: bool = False, key: Any = None
    ) -> Array:
        """The output; every stream of random numbers starts from a part of `key`."""
        graph, shapes, streams = self._structure
        filled = jax.tree.unflatten(jax.tree.structure(shapes), _leaves_like(shapes, params))
        module = nnx.merge(graph, filled, _started(streams, key))
        (module.train if train else module.eval)()
        takes_train = "train" in inspect.signature(type(module).__call__).parameters
        return module(x, t, cond, **({"train": train} if takes_train else {}))

    @cached_property
    def _structure(self) -> tuple[Any, Any, Any]:
        """The graph, and shapes of the parameters and of the streams."""
        return _split(nnx.eval_shape(lambda: self._make(rngs=nnx.Rngs(0))))


def from_nnx(make: Callable[..., nnx.Module], **fields: Any) -> NNXNetwork:
    """An NNX class (or what makes a module of `rngs`) with its other arguments, as a network.

    Raises (by `init`):
      ValueError: the module has variables that are neither parameters nor streams of random
        numbers, such as batch statistics: nothing would update them.
    """

    def made(*, rngs: nnx.Rngs) -> nnx.Module:
        return make(**fields, rngs=rngs)

    return NNXNetwork(made)


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    graph, params, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    found = _variables(rest)
    others = sorted({type(leaf).__name__ for leaf in found if isinstance(leaf, nnx.Variable)})
    if len(found) > len(others) == 0:
        raise ValueError(
            f"{type(module).__name__} has arrays that are no nnx.Param among its attributes: "
            "compute them where they are used, or make them NumPy constants of the class"
        )
    if others:
        raise ValueError(
            f"{type(module).__name__} has variables of the kinds {', '.join(others)}, which "
            "training would leave as they are: expected nnx.Param alone, such as GroupNorm or "
            "LayerNorm in place of BatchNorm"
        )
    return graph, params, streams


def _variables(state: Any) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _to_dict(params: Any) -> Any:
    """NNX's state as nested dictionaries with text for keys, which checkpoints can name."""

    def texts(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {str(key): texts(value) for key, value in tree.items()}
        return tree

    return texts(nnx.to_pure_dict(params))


def _leaves_like(shapes: Any, params: Any) -> list[Any]:
    """The leaves of nested dictionaries in the order of NNX's state."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        shapes, is_leaf=lambda x: isinstance(x, nnx.Variable)
    ):
        del leaf
        value = params
        for entry in path:
            value = value[str(getattr(entry, "key", getattr(entry, "idx", entry)))]
        found.append(value)
    return found


def _started(streams: Any, key: Any) -> Any:
    """The streams with counts of 0 and keys that follow from one key."""
    key = jax.random.key(0) if key is None else key  # nothing is drawn without training
    leaves, structure = jax.tree.flatten(streams)
    started = []
    for number, leaf in enumerate(leaves):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            started.append(jax.random.fold_in(key, number))
        else:
            started.append(jnp.zeros(leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, started)
