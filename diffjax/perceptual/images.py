"""Checks and conversion of the networks' input images."""

import jax
import jax.numpy as jnp

from diffjax.types import Array


def check_sides(images: Array, smallest: int, name: str) -> None:
    """Checks that images are large enough for a network's downsampling.

    Args:
      images: (B, H, W, C).
      smallest: the network's minimal side.
      name: the network, for the message.

    Raises:
      ValueError: images that are not (B, H, W, C), or with a shorter side.
    """
    if images.ndim != 4 or min(images.shape[1:3]) < smallest:
        raise ValueError(
            f"got images of shape {images.shape} for {name}; expected (B, H, W, C) with "
            f"H, W >= {smallest}; enlarge the images"
        )


def to_rgb(images: Array, name: str) -> Array:
    """(B, H, W, 1 or 3) -> (B, H, W, 3) float32; grey is repeated.

    Raises:
      ValueError: other numbers of channels.
    """
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"got images of {images.shape[-1]} channels for {name}; expected 1 (grey) or 3 (RGB); "
            "drop the others"
        )
    images = images.astype(jnp.float32)
    return jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def resize(images: Array, side: int) -> Array:
    """(B, H, W, C) -> (B, side, side, C), bilinear without a low-pass filter.

    Pixel centres are at half-integers and edges are repeated, as PyTorch's interpolate does with
    mode="bilinear" and align_corners=False.
    """
    shape = (len(images), side, side, images.shape[-1])
    return jax.image.resize(images, shape, "bilinear", antialias=False)
