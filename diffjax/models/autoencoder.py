"""The convolutional encoder and decoder of latent diffusion."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.models.attention import Mixer, SelfAttention
from diffjax.models.blocks import (
    Conv3x3,
    Dense,
    Downsample,
    ResNetBlock,
    Upsample,
    depth_to_space,
    space_to_depth,
)
from diffjax.models.checks import (
    check_dtype,
    check_functions,
    check_images,
    check_listed,
    check_wholes,
)
from diffjax.models.norm import GroupNorm
from diffjax.models.ops import XLA, Ops
from diffjax.types import Array, Dtype


def level_sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """(height, width) at each level, each half of the previous one, rounded up."""
    sizes = [(height, width)]
    for _ in range(levels - 1):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def _check_fields(module: nn.Module) -> None:
    """Raises UserError for a field of another type or out of range."""
    check_wholes(module, {"out_channels": 1, "channels": 1, "blocks": 0, "patch": 1})
    check_listed(module, "multipliers", filled=True)
    check_functions(module, "mix")
    check_dtype(module)


class Encoder(nn.Module):
    """Images to a small map: residual blocks and downsampling, then attention in the middle.

    Esser et al. 2021, "Taming transformers for high-resolution image synthesis", table 7, as used
    by Rombach et al. 2022. The map's sides are the image's over f = patch 2^(levels - 1), rounded
    up.

    Attributes:
      out_channels: of the map; twice the latent's for a Gaussian's mean and log-variance.
      channels: channels at the first level.
      multipliers: channels of each level over `channels`; their number sets f.
      blocks: residual blocks per level.
      patch: patch side of the space-to-depth stem; 1 for none.
      head_channels: channels per attention head, None for one head.
      mix: as in `SelfAttention`.
      groups, eps: of the normalisations, as in `GroupNorm`.
      pad_end: as `at_end` of `Downsample`.
      projected: whether a linear map of the channels follows.
      dtype: compute type; parameters stay float32.
      ops: kernels of convolutions and normalisation.
    """

    out_channels: int
    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    patch: int = 1
    head_channels: int | None = None
    mix: Mixer = jax.nn.dot_product_attention
    groups: int | None = None
    eps: float = 1e-5
    pad_end: bool = False
    projected: bool = False
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) in [-1, 1] -> (B, ceil(H / f), ceil(W / f), out_channels) float32."""
        _check_fields(self)
        check_images(self, x)
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        norm: dict[str, Any] = {"groups": self.groups, "eps": self.eps, **common}
        h = space_to_depth(x, self.patch).astype(self.dtype)
        h = Conv3x3(self.channels, name="stem", **common)(h)
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                h = ResNetBlock(self.channels * multiplier, name=f"down{level}_{i}", **norm)(h)
            if level + 1 < len(self.multipliers):
                h = Downsample(self.pad_end, name=f"down{level}", **common)(h)
        h = Middle(self.head_channels, mix=self.mix, name="middle", **norm)(h)
        h = GroupNorm(silu=True, name="norm", **norm)(h)
        h = Conv3x3(self.out_channels, name="head", **common)(h)
        if self.projected:
            h = Dense(self.out_channels, name="projection", **common)(h)
        return h.astype(jnp.float32)


class Decoder(nn.Module):
    """A small map to images: the encoder mirrored, with one more block per level.

    Attributes:
      out_channels: of the images.
      channels, multipliers, blocks, patch, head_channels, mix, groups, eps, dtype, ops: as in
        `Encoder`.
      projected: whether a linear map of the latents' channels comes first.
    """

    out_channels: int
    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    patch: int = 1
    head_channels: int | None = None
    mix: Mixer = jax.nn.dot_product_attention
    groups: int | None = None
    eps: float = 1e-5
    projected: bool = False
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, z: Array, size: tuple[int, int] | None = None) -> Array:
        """Decodes; sows the last convolution's input as "last" in "intermediates".

        Args:
          z: (B, h, w, C) latents.
          size: the images' (H, W); f h and f w by default.

        Returns:
          (B, H, W, out_channels) float32.

        Raises:
          ValueError: the latents' size does not match `size`.
        """
        _check_fields(self)
        check_images(self, z, name="z")
        if size is not None and (
            len(size_ := arguments.wholes("size", size)) != 2 or min(size_) < 1
        ):
            raise UserError(f"size is {size!r}: expected (H, W)")
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        levels = len(self.multipliers)
        f = self.patch * 2 ** (levels - 1)
        height, width = size or (f * z.shape[1], f * z.shape[2])
        sizes = level_sizes(-(-height // self.patch), -(-width // self.patch), levels)
        if sizes[-1] != z.shape[1:3]:
            raise ValueError(
                f"latents of {z.shape[1]}x{z.shape[2]} are not those of images of "
                f"{height}x{width}, which have {sizes[-1][0]}x{sizes[-1][1]} at f = {f}"
            )
        norm: dict[str, Any] = {"groups": self.groups, "eps": self.eps, **common}
        widest = self.channels * self.multipliers[-1]
        h = z.astype(self.dtype)
        if self.projected:
            h = Dense(z.shape[-1], name="projection", **common)(h)
        h = Conv3x3(widest, name="stem", **common)(h)
        h = Middle(self.head_channels, mix=self.mix, name="middle", **norm)(h)
        for level in reversed(range(levels)):
            for i in range(self.blocks + 1):
                h = ResNetBlock(
                    self.channels * self.multipliers[level], name=f"up{level}_{i}", **norm
                )(h)
            if level:
                h = Upsample(name=f"up{level}", **common)(h, *sizes[level - 1])
        h = GroupNorm(silu=True, name="norm", **norm)(h)
        self.sow("intermediates", "last", h)
        h = Conv3x3(self.out_channels * self.patch**2, name="head", **common)(h)
        return self.to_images(h, (height, width))

    def to_images(self, h: Array, size: tuple[int, int]) -> Array:
        """The last convolution's output as images of a size (H, W), float32."""
        return depth_to_space(h, self.patch, *size).astype(jnp.float32)


class Middle(nn.Module):
    """Two residual blocks around self-attention: (B, H, W, C) -> the same shape."""

    head_channels: int | None = None
    mix: Mixer = jax.nn.dot_product_attention
    groups: int | None = None
    eps: float = 1e-5
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        norm: dict[str, Any] = {"groups": self.groups, "eps": self.eps, **common}
        channels = x.shape[-1]
        h = ResNetBlock(channels, name="block_0", **norm)(x)
        h = SelfAttention(self.head_channels or channels, mix=self.mix, name="attention", **norm)(h)
        return ResNetBlock(channels, name="block_1", **norm)(h)
