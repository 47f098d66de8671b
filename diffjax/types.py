"""Types that pass between all modules.

Axes of one name have one size within a signature; `*shape` stands for any number of axes. Nothing
is checked when diffjax is used: its own tests check the core's calls (tests/conftest.py).
"""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Integer, Key, Real

Array = jax.Array
Dtype = Any  # a dtype or a scalar type such as jnp.bfloat16

# What is answered in kind: JAX arrays by JAX arrays, NumPy arrays and numbers by NumPy's.
Numbers = TypeVar("Numbers", jax.Array, np.ndarray, float)

Floats = Float[Array, "*shape"]  # of one shape, whatever it is: what is done is elementwise
Data = Float[Array, "batch *shape"]  # (B, ...): x_0, x_t, eps
Images = Float[Array, "batch height width channels"]
PerExample = Float[Array, " batch"]  # (B,), such as losses
Indices = Integer[Array | np.ndarray, " batch"]  # (B,): the examples' places in the global batch

Times = Real[ArrayLike, ""] | Real[ArrayLike, " batch"]  # one for all examples, or (B,)
TimePerExample = Real[Array, " batch"]  # (B,): integers on a discrete schedule

PRNGKey = Key[Array, ""]  # jax.random.key(seed)
PRNGKeys = PRNGKey | Key[Array, " batch"]  # one from which each example's is made, or (B,)
