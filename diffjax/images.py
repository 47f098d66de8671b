"""Images as a model sees them."""

import jax
import jax.numpy as jnp

from diffjax import rng
from diffjax.types import Array


def to_model_range(images: Array) -> Array:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def random_flip(key: Array, indices: Array, x: Array) -> Array:
    """(B, H, W, C), half of them mirrored left to right; each by its place alone."""
    mirrored = rng.per_example(key, indices, jax.random.bernoulli)
    return jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
