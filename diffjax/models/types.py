"""Names for what passes between modules."""

from typing import Any

import jax

Array = jax.Array
Dtype = Any  # a dtype or a scalar type such as jnp.bfloat16
