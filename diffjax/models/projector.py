"""The network between the features of two others; see `losses.alignment`."""

import flax.linen as nn
import jax.numpy as jnp

from diffjax.types import Array


class Projector(nn.Module):
    """Three layers with SiLU, in float32: from a block's tokens to another network's features.

    Yu et al. 2024, "Representation alignment for generation", section 3.1.

    Attributes:
      hidden: channels of the two hidden layers.
      features: of the result.
    """

    hidden: int
    features: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """(..., C) -> (..., features)."""
        for name in ("first", "second"):
            h = nn.silu(nn.Dense(self.hidden, name=name)(h.astype(jnp.float32)))
        return nn.Dense(self.features, name="out")(h)
