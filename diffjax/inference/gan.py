"""Samples from a trained generator of a GAN, in one evaluation."""

from typing import Any

import jax
import jax.numpy as jnp

from diffjax.models.gan import Generator
from diffjax.types import Array


def sample_images(
    network: Generator,
    params: Any,
    keys: Array,
    label: Array | None = None,
    *,
    latent_size: int,
) -> Array:
    """G(z) with z of N(0, 1) for each key: (B, H, W, C), images in [-1, 1].

    Args:
      network: the generator.
      params: its parameters.
      keys: (B,) of the samples' randomness.
      label: (B,) classes; None for a network without classes.
      latent_size: Z of z, (B, Z).
    """
    z = jax.vmap(lambda key: jax.random.normal(key, (latent_size,)))(keys)
    return jnp.clip(network.apply({"params": params}, z, label), -1, 1)
