"""Images as a model sees them."""

import jax
import jax.numpy as jnp
from jaxtyping import Float32, UInt8

from diffjax import rng
from diffjax.types import Array, Images, Indices, PRNGKey


def to_model_range(images: UInt8[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def random_flip(key: PRNGKey, indices: Indices, x: Images) -> Images:
    """(B, H, W, C), half of them mirrored left to right; each by its place alone."""
    mirrored = rng.per_example(key, indices, jax.random.bernoulli)
    return jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
