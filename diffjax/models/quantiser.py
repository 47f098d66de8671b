"""Vector quantisation with an EMA codebook, as pure functions.

van den Oord et al. 2017, "Neural discrete representation learning", appendix A.1: the codes are
exponential moving averages of the vectors assigned to them, and get no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.types import Array


class Codebook(NamedTuple):
    """K codes of D features and their averages.

    Attributes:
      codes: (K, D) float32.
      counts: (K,) float32: moving average of the number of vectors assigned to each code.
      sums: (K, D) float32: moving average of their sum.
    """

    codes: Array
    counts: Array
    sums: Array


def init_codebook(key: Array, size: int, features: int) -> Codebook:
    """A codebook of standard normal codes with counts of 1."""
    codes = jax.random.normal(key, (size, features))
    return Codebook(codes, jnp.ones(size), codes)


def nearest(codebook: Codebook, z: Array) -> Array:
    """(..., D) -> (...) int32, the nearest code of each vector."""
    codes = codebook.codes
    # |z - c|^2 without |z|^2, which does not depend on the code.
    distance = jnp.square(codes).sum(1) - 2 * jnp.einsum(
        "...d,kd->...k", z, codes, precision=jax.lax.Precision.HIGHEST
    )
    return distance.argmin(-1).astype(jnp.int32)


def quantise(codebook: Codebook, z: Array) -> tuple[Array, Array]:
    """The nearest code of each vector, with a straight-through gradient to z.

    Args:
      codebook: K codes.
      z: (..., D).

    Returns:
      (..., D) codes and (...) int32 their indices.
    """
    indices = nearest(codebook, z)
    codes = codebook.codes[indices]
    return z + jax.lax.stop_gradient(codes - z), indices


def commitment(codebook: Codebook, z: Array, indices: Array) -> Array:
    """(B, ..., D), (B, ...) -> (B,): mean squared distance of z to its codes, without gradient to
    the codes."""
    codes = jax.lax.stop_gradient(codebook.codes)[indices]
    return jnp.square(z - codes).mean(tuple(range(1, z.ndim)))


def update(
    codebook: Codebook,
    z: Array,
    indices: Array,
    *,
    key: Array,
    decay: float = 0.99,
    least: float = 0.01,
) -> Codebook:
    """The codebook after a batch; dead codes are reset to random vectors of the batch.

    Restarts after Dhariwal et al. 2020, "Jukebox", section 3.2.

    Args:
      codebook: before.
      z: (..., D) vectors; no gradient is taken.
      indices: (...) their codes.
      key: for the choice of vectors.
      decay: of counts and sums, in [0, 1).
      least: a code is dead if its count is below this fraction of the mean count.
    """
    size, features = codebook.codes.shape
    vectors = jax.lax.stop_gradient(z).reshape(-1, features).astype(jnp.float32)
    chosen = jax.nn.one_hot(indices.reshape(-1), size)
    batch_counts = chosen.sum(0)
    batch_sums = jnp.einsum("nk,nd->kd", chosen, vectors, precision=jax.lax.Precision.HIGHEST)
    counts = decay * codebook.counts + (1 - decay) * batch_counts
    sums = decay * codebook.sums + (1 - decay) * batch_sums
    dead = counts < least * counts.sum() / size
    fresh = vectors[jax.random.randint(key, (size,), 0, len(vectors))]
    even = counts.sum() / size
    counts = jnp.where(dead, even, counts)
    sums = jnp.where(dead[:, None], even * fresh, sums)
    return Codebook(sums / counts[:, None], counts, sums)


def perplexity(indices: Array, size: int) -> Array:
    """exp of the entropy of the code frequencies: from 1 (one code) to `size` (uniform)."""
    share = jnp.bincount(indices.reshape(-1), length=size) / indices.size
    return jnp.exp(-(share * jnp.log(jnp.maximum(share, 1e-12))).sum())
