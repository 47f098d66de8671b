"""A small convolutional classifier whose hidden layer serves as image features.

About 220,000 parameters, with few channels at high resolution, so that it trains in minutes on a
laptop's CPU. Fréchet distances are computed between its 128 features, so a change to any layer
changes every reported distance.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.errors import UserError

FEATURES = 128
SMALLEST_SIDE = 8


class Classifier(nn.Module):
    """Logits and features of images of any size from 8x8 up.

    Layers: 2x2 pixels to channels; 3x3 convolutions of 32, 32 (at 1/2 of the sides), 64, 64 (at
    1/4) and 96, 96 channels (at 1/8), each followed by batch normalisation (Ioffe & Szegedy
    2015) and ReLU, each pair's second one with a residual connection (He et al. 2016); the mean
    over all positions; a dense layer of 128; SiLU. This gives the features; a further dense layer
    gives the logits.

    Attributes:
      num_classes: number of logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Classifies images.

        Args:
          images: float32 (B, H, W, C) in [-1, 1]; H, W >= 8, even or odd; any C.
          train: normalise with the batch's statistics and update the running ones (make the
            "batch_stats" collection mutable), or use the running ones.

        Returns:
          logits float32 (B, num_classes) and features float32 (B, 128). The three resolutions'
          maps, (B, ceil(H/2), ceil(W/2), 32) and so on, are sown as "maps" in "intermediates".

        Raises:
          UserError: images that are not (B, H, W, C) or have a side under 8.
        """
        if images.ndim != 4 or min(images.shape[1:3]) < SMALLEST_SIDE:
            raise UserError(
                f"got images of shape {images.shape} for the classifier; expected (B, H, W, C) "
                f"with H, W >= {SMALLEST_SIDE}; enlarge the images"
            )
        x = _space_to_depth(images)
        for stage, channels in enumerate((32, 64, 96)):
            x = self._unit(x, channels, stride=1 if stage == 0 else 2, train=train)
            x = x + self._unit(x, channels, stride=1, train=train)
            self.sow("intermediates", "maps", x)
        x = nn.Dense(FEATURES, name="features")(x.mean(axis=(1, 2)))
        features = nn.silu(x)
        return nn.Dense(self.num_classes, name="logits")(features), features

    def _unit(self, x: jax.Array, channels: int, *, stride: int, train: bool) -> jax.Array:
        x = nn.Conv(channels, (3, 3), strides=stride, use_bias=False)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.95)(x))


def _space_to_depth(images: jax.Array) -> jax.Array:
    """(B, H, W, C) to (B, ceil(H/2), ceil(W/2), 4C); an odd side repeats its last row."""
    images = jnp.pad(
        images, ((0, 0), (0, images.shape[1] % 2), (0, images.shape[2] % 2), (0, 0)), mode="edge"
    )
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)
