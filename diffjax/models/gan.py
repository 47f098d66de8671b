"""A generator and a discriminator of residual blocks without normalisation, as R3GAN's.

Huang et al. 2024, section 3: leaky ReLU; a block's last kernel starts at zero, so that no sum grows
with the depth (Fixup; Zhang et al. 2019). Means of 2x2 pixels and nearest neighbours change the
resolution. The class is embedded: next to z in the generator, as a direction of the features in the
discriminator (projection; Miyato & Koyama 2018, equation 3).
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffjax.errors import UserError
from diffjax.models.blocks import Conv3x3, Dense, average_pool, nearest
from diffjax.models.ops import XLA, Ops
from diffjax.types import Array, Dtype


def coarsest(height: int, width: int, levels: int) -> tuple[int, int]:
    """(height, width) of the last level; UserError for images that can't be halved so often."""
    f = 2 ** (levels - 1)
    if height % f or width % f:
        fit = f"({-(-height // f) * f}, {-(-width // f) * f})"
        raise UserError(
            f"images of {height}x{width} can't be halved {levels - 1} times: resize them to {fit}, "
            f"as by config.data.image_size = {fit}, or use fewer config.gan.channels"
        )
    return height // f, width // f


_of_classes: Any = partial(nn.Embed, embedding_init=nn.initializers.normal(1.0))


def _blocks(h: Array, features: int, count: int, zero: bool = True, **common: Any) -> Array:
    """x + conv(act(conv(act(x)))), `count` times, after a linear map if x has other channels."""
    if h.shape[-1] != features:
        h = Dense(features, **common)(h)
    for _ in range(count):
        y = Conv3x3(features, **common)(nn.leaky_relu(h, 0.2))
        h = h + Conv3x3(features, zero=zero, **common)(nn.leaky_relu(y, 0.2))
    return h


class Generator(nn.Module):
    """z and a class to an image.

    Attributes:
      shape: (H, W, C) of the images.
      num_classes: 0 for a network without classes.
      channels: of each level, the first one of the images' resolution.
      blocks, dtype, ops: residual blocks per level; compute type; kernel implementations.
    """

    shape: tuple[int, int, int]
    num_classes: int = 0
    channels: tuple[int, ...] = (48, 96, 192)
    blocks: int = 1
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        """z: (B, Z) of N(0, 1), label: (B,) integers -> (B, H, W, C) float32.

        Images in [-1, 1], which is learned: a tanh that saturates passes no gradient.
        """
        height, width, channels = self.shape
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        size = coarsest(height, width, len(self.channels))
        if label is not None:
            z = jnp.concatenate([z, _of_classes(self.num_classes, z.shape[-1])(label)], axis=-1)
        h = Dense(math.prod(size) * self.channels[-1], **common)(z)
        h = h.reshape(-1, *size, self.channels[-1])
        for level, features in enumerate(reversed(self.channels)):
            if level:
                h = nearest(h, height=2 * h.shape[1], width=2 * h.shape[2])
            h = _blocks(h, features, self.blocks, **common)
        h = Conv3x3(channels, **common)(nn.leaky_relu(h, 0.2))
        return h.astype(jnp.float32)


class Discriminator(nn.Module):
    """An image and a class to a logit, higher for real images.

    As in `Generator`; `zero` is whether a block's last kernel starts at zero, which has no norm.
    """

    num_classes: int = 0
    channels: tuple[int, ...] = (48, 96, 192)
    blocks: int = 1
    dtype: Dtype = jnp.float32
    ops: Ops = XLA
    zero: bool = True

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """x: (B, H, W, C) in [-1, 1], label: (B,) integers -> (B,) float32."""
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        size = coarsest(x.shape[1], x.shape[2], len(self.channels))
        h = Conv3x3(self.channels[0], **common)(x)
        for level, features in enumerate(self.channels):
            h = average_pool(h) if level else h
            h = _blocks(h, features, self.blocks, self.zero, **common)
        h = nn.leaky_relu(h, 0.2).astype(jnp.float32)
        # A weight for each place and channel, as in R3GAN, instead of a matrix of all of them.
        init = nn.initializers.normal(math.prod(size) ** -0.5)
        h = jnp.einsum("bhwc,hwc->bc", h, self.param("maps", init, h.shape[1:]))
        logits = Dense(1)(h)[:, 0]
        if label is not None:
            direction = _of_classes(self.num_classes, h.shape[-1])(label)
            logits += (h * direction).sum(-1) * h.shape[-1] ** -0.5
        return logits
