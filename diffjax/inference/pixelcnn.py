"""Samples from a trained PixelCNN++, pixel by pixel."""

from typing import Any

import jax
import jax.numpy as jnp

from diffjax.likelihood.logistic_mixture import (
    mixture_from_outputs,
    sample_logistic_mixture,
)
from diffjax.models.causal_conv import CACHE
from diffjax.models.pixelcnn import PixelCNN, empty_cache
from diffjax.types import Array


def sample_images(
    network: PixelCNN,
    params: Any,
    keys: Array,
    label: Array | None = None,
    *,
    shape: tuple[int, int, int],
    levels: int = 256,
) -> Array:
    """One exact sample of the model for each key, by incremental calls: (B, H, W, C) in [-1, 1].

    Of each convolution's inputs two or three rows are kept.

    Args:
      network: the network.
      params: its parameters.
      keys: (B,) of the samples' randomness; a pixel's is of its sample's key and its number.
      label: (B,) classes, -1 for none; None for a network without classes.
      shape: (H, W, C).
      levels: 256 for images of 8 bits.
    """
    height, width, channels = shape
    blank = jnp.zeros((len(keys), *shape))

    def call(method: str, cache: Any, *arguments: Any) -> tuple[Any, Any]:
        result, state = network.apply(
            {"params": params, CACHE: cache}, *arguments, method=method, mutable=[CACHE]
        )
        return result, state[CACHE]

    def draw(outputs: Array, key: Array) -> Array:
        mixture = mixture_from_outputs(outputs, channels=channels)
        return sample_logistic_mixture(mixture, key, levels=levels)

    def draw_row(row: Array, carried: tuple[Array, Any]) -> tuple[Array, Any]:
        x, cache = carried
        features, cache = call("row", cache, x, label, row)

        def draw_pixel(column: Array, carried: tuple[Array, Any]) -> tuple[Array, Any]:
            x, cache = carried
            outputs, cache = call("pixel", cache, x, label, features, row, column)
            pixel_keys = jax.vmap(lambda key: jax.random.fold_in(key, row * width + column))(keys)
            pixels = jax.vmap(draw)(outputs, pixel_keys)
            x = jax.lax.dynamic_update_slice(x, pixels[:, None, None], (0, row, column, 0))
            return x, cache

        return jax.lax.fori_loop(0, width, draw_pixel, (x, cache))

    cache = empty_cache(network, params, blank, label)
    return jax.lax.fori_loop(0, height, draw_row, (blank, cache))[0]
