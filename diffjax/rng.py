"""Every random number is a function of (seed, a stream's name, step, example).

A run that stops and goes on draws what an uninterrupted one draws, and an example's noise depends
on its place in the global batch, not on the device that holds it.
"""

import zlib
from collections.abc import Callable

import jax

from diffjax.types import Array


def stream(seed: Array, name: str, step: Array = 0) -> Array:
    """The key of a named stream at a step.

    Args:
      seed: integer.
      name: the stream, such as "noise"; different names give unrelated keys.
      step: integer, from 0.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)
    return jax.random.fold_in(key, step)


def per_example(key: Array, indices: Array, draw: Callable[[Array], Array]) -> Array:
    """draw(key_i) for each example i, stacked; key_i = fold_in(key, i).

    Args:
      key: a stream's key.
      indices: (B,) integers: the examples' places in the global batch.
      draw: key -> array.
    """
    return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(indices)
