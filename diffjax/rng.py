"""Every random number is a function of (seed, a stream's name, step, example).

A run that stops and goes on draws what an uninterrupted one draws, and an example's noise depends
on its place in the global batch, not on the device that holds it.
"""

import zlib
from collections.abc import Callable

import jax
from jaxtyping import Integer, Shaped

from diffjax.checks import checked
from diffjax.types import Array, ArrayLike, Indices, PRNGKey


@checked
def stream(seed: Integer[ArrayLike, ""], name: str, step: Integer[ArrayLike, ""] = 0) -> PRNGKey:
    """The key of a named stream at a step.

    Args:
      seed: integer.
      name: the stream, such as "noise"; different names give unrelated keys.
      step: integer, from 0.

    Returns:
      A PRNG key.

    >>> import diffjax as dj
    >>> noise = dj.rng.stream(0, "noise", step=3)
    >>> [bool(noise == dj.rng.stream(0, name, step=3)) for name in ("noise", "times")]
    [True, False]
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)
    return jax.random.fold_in(key, step)


@checked
def per_example(
    key: PRNGKey, indices: Indices, draw: Callable[[PRNGKey], Array]
) -> Shaped[Array, "batch ..."]:
    """draw(key_i) for each example i, stacked; key_i = fold_in(key, i).

    Args:
      key: a stream's key.
      indices: (B,) integers: the examples' places in the global batch.
      draw: key -> array.

    Returns:
      (B, ...) of what `draw` returns.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> key, draw = dj.rng.stream(0, "noise"), lambda key: jax.random.normal(key, (2,))
    >>> first = dj.rng.per_example(key, jnp.array([0, 1, 2, 3]), draw)
    >>> other = dj.rng.per_example(key, jnp.array([3, 4, 5, 6]), draw)  # on another device
    >>> print((first[3] == other[0]).all())
    True
    """
    return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(indices)
