"""Logits over the levels of discrete data, as the last layer of a network."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffjax.types import Array


class LevelHead(nn.Module):
    """Features of each channel to logits over its levels, by one shared linear map.

    The map's rows are initialised to cosines over the levels, in order of frequency, and to
    indicators of the lowest and the highest level, which are frequent in many images. With a random
    initialisation the network would first have to learn the order of the levels.

    Attributes:
      channels: C.
      levels: K, at least 2.
    """

    channels: int
    levels: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """(B, ..., C F) -> (B, ..., C K) float32.

        Raises:
          ValueError: fewer than 3 features per channel.
        """
        features = h.shape[-1] // self.channels
        if features < 3:
            raise ValueError(f"level_features must be at least 3, not {features}")
        start = _rows(features, self.levels)
        kernel = self.param("kernel", lambda key: jnp.asarray(start, jnp.float32))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.levels,))
        h = h.reshape(*h.shape[:-1], self.channels, features)
        logits = h @ kernel + bias
        return logits.reshape(*h.shape[:-2], self.channels * self.levels)


def _rows(features: int, levels: int) -> np.ndarray:
    place = (np.arange(levels) + 0.5) / levels
    waves = [2**0.5 * np.cos(np.pi * k * place) for k in range(1, features - 1)]
    ends = levels**0.5 * np.eye(levels)[[0, -1]]
    return np.stack([*waves, *ends])
