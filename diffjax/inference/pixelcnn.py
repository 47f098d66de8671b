"""Samples from a trained PixelCNN++, pixel by pixel."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import rng
from diffjax.distributed import processes
from diffjax.distributed.placement import Placement
from diffjax.errors import UserError
from diffjax.figures import to_uint8
from diffjax.inference.generator import Generated
from diffjax.inference.sample_conditions import SampleConditions
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


class PixelGenerator(NamedTuple):
    """Sample i, for any i, as a function of (params, seed, i), like `generator.Generator`.

    Attributes:
      network: the network.
      shape: (H, W, C) of the images.
      conditions: of the samples.
      seed: of their randomness.
      batch_size: samples computed at once.
    """

    network: PixelCNN
    shape: tuple[int, int, int]
    conditions: SampleConditions
    seed: int
    batch_size: int

    @property
    def weak_params(self) -> None:
        """No other model guides the samples."""
        return None

    def __call__(
        self, params: Any, *, start: int, count: int, batch_size: int | None = None
    ) -> Generated:
        """Samples start .. start + count - 1, in batches of one size, split among all devices.

        Args:
          params: the network's parameters.
          start: index of the first sample.
          count: number of samples.
          batch_size: by default the smaller of config.sample.batch_size and `count`.

        Raises:
          UserError: a sample is not finite.
        """
        placement = Placement()
        size = placement.round_up_batch(batch_size or min(self.batch_size, count))
        draws = []
        for first in range(start, start + count, size):
            indices = first + np.arange(size)  # the last batch is padded: one compiled shape
            condition = self.conditions.batch(first, size)
            label = None if condition is None else condition.label
            placed = placement.shard_batch((indices, label))
            x = _samples(self.network, self.shape, params, np.uint32(self.seed), *placed)
            draws.append(processes.on_host(x)[: min(size, start + count - first)])
        images = np.concatenate(draws)
        if not np.isfinite(images).all():
            raise UserError(
                "the model's parameters are not finite: use another config.sample.checkpoint"
            )
        return Generated(to_uint8(images), None)


@partial(jax.jit, static_argnums=(0, 1))
def _samples(
    network: PixelCNN,
    shape: tuple[int, int, int],
    params: Any,
    seed: Array,
    indices: Array,
    label: Array | None,
) -> Array:
    stream = rng.stream(seed, "sample_pixels")
    keys = jax.vmap(lambda i: jax.random.fold_in(stream, i))(indices)
    return sample_images(network, params, keys, label, shape=shape)
