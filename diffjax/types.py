"""Types that pass between all modules."""

from typing import Any

Array = Any  # jax.Array or numpy.ndarray: the schedules answer in kind.
Dtype = Any  # a dtype or a scalar type such as jnp.bfloat16
