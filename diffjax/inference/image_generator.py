"""Samples of a model that draws images from keys and classes: a PixelCNN++, or a GAN."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax import rng
from diffjax.distributed import processes
from diffjax.distributed.placement import Placement
from diffjax.errors import UserError
from diffjax.figures import to_uint8
from diffjax.inference.generator import Generated
from diffjax.inference.sample_conditions import SampleConditions
from diffjax.progress import Bar
from diffjax.types import Array

# (params, keys (B,), classes (B,) or None) -> (B, H, W, C) in [-1, 1]
Draw = Callable[[Any, Array, Array | None], Array]


class ImageGenerator(NamedTuple):
    """Sample i, for any i, as a function of (params, seed, i), like `generator.Generator`.

    Attributes:
      draw: a sample of each key.
      stream: name of the random stream of the samples' keys.
      conditions: of the samples.
      seed: of their randomness.
      batch_size: samples computed at once.
    """

    draw: Draw
    stream: str
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
        with Bar("samples", count, unit="sample", at_once=size) as bar:
            for first in range(start, start + count, size):
                indices = first + np.arange(size)  # the last batch is padded: one compiled shape
                condition = self.conditions.batch(first, size)
                label = None if condition is None else condition.label
                placed = placement.shard_batch((indices, label))
                x = _samples(self.draw, self.stream, params, np.uint32(self.seed), *placed)
                draws.append(processes.on_host(x)[: min(size, start + count - first)])
                bar(first - start + size)
        images = np.concatenate(draws)
        if not np.isfinite(images).all():
            raise UserError(
                "the model's parameters are not finite: use another config.sample.checkpoint"
            )
        return Generated(to_uint8(images), None)


@partial(jax.jit, static_argnums=(0, 1))
def _samples(
    draw: Draw, stream: str, params: Any, seed: Array, indices: Array, label: Array | None
) -> Array:
    key = rng.stream(seed, stream)
    return draw(params, jax.vmap(lambda i: jax.random.fold_in(key, i))(indices), label)
