"""Images as a model sees them."""

import jax.numpy as jnp
from jaxtyping import Float32, UInt8

from diffjax.types import Array


def to_model_range(images: UInt8[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0
