"""How far the accelerator's results may be from a reference.

Bounds are on the largest error over the largest value: 2e-5 in float32, where Winograd's filtering
(winograd.h) rounds more than sums do; 8e-3 where results are rounded to bfloat16 (2^-8 is 4e-3)
and, with AMX, kernels as well; 1e-3 for float32 sums of bfloat16 products.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of images, of sums over images.
BOUNDS = {"float32": (2e-5, 2e-5), "bfloat16": (8e-3, 1e-3)}


def error(ours: Any, reference: Any) -> float:
    ours, reference = (np.asarray(a, np.float64) for a in (ours, reference))
    assert ours.shape == reference.shape
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def normal(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)
