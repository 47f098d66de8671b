"""The U-Net's residual blocks, downsampling and upsampling."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.ad_checkpoint import checkpoint_name

from diffjax.models.norm import GroupNorm
from diffjax.models.ops import XLA, Ops
from diffjax.models.remat import PRODUCT
from diffjax.types import Array, Dtype


class Conv3x3(nn.Module):
    """A 3x3 convolution with one pixel of zero padding.

    Attributes:
      features: output channels.
      stride: 2 halves the sides, rounded up.
      padding: zeros on every side.
      zero: whether the kernel is initialised to zero.
      dtype: compute type.
      ops: its kernel implementation.
    """

    features: int
    stride: int = 1
    padding: int = 1
    zero: bool = False
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), features)."""
        init = nn.initializers.zeros_init() if self.zero else nn.linear.default_kernel_init
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        y = self.ops.conv(
            x.astype(self.dtype), kernel, bias, stride=self.stride, padding=self.padding
        )
        return checkpoint_name(y, PRODUCT)


class Dense(nn.Module):
    """A linear map of every pixel's channels.

    Attributes:
      features: output channels.
      zero: whether the kernel is initialised to zero.
      kernel_init: else, how it is.
      use_bias: whether it has a bias.
      dtype: compute type.
      ops: its kernel implementation.
    """

    features: int
    zero: bool = False
    kernel_init: Initializer = nn.linear.default_kernel_init
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, ..., C) -> (B, ..., features)."""
        init = nn.initializers.zeros_init() if self.zero else self.kernel_init
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        else:
            bias = jnp.zeros(self.features)
        return checkpoint_name(self.ops.dense(x.astype(self.dtype), kernel, bias), PRODUCT)


class ResNetBlock(nn.Module):
    """DDPM's residual block, GroupNorm - SiLU - conv twice (Ho et al. 2020, appendix B).

    The embedding scales and shifts the second normalisation (ADM; Dhariwal & Nichol 2021, table 3)
    or, with scale_shift = False, is added before it (DDPM).

    Attributes:
      features: output channels.
      dropout: rate before the second convolution.
      scale_shift: whether the embedding is a scale and shift.
      resample: changes the resolution of x and, before the first convolution, of what is added to
        it: `average_pool`, or `nearest` with a size (ADM; Dhariwal & Nichol 2021, section 3, after
        BigGAN's blocks); None keeps it.
      groups, eps: of the normalisations, as in `GroupNorm`.
      dtype: compute type.
      ops: kernels of convolutions and normalisation.
    """

    features: int
    dropout: float = 0.0
    scale_shift: bool = True
    resample: Callable[[Array], Array] | None = None
    groups: int | None = None
    eps: float = 1e-5
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None = None, train: bool = False) -> Array:
        """(B, H, W, C) -> (B, H', W', features); embedding: (B, E), None in networks without one.

        H' and W' are H and W, or what `resample` makes of them.
        """
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        norm: dict[str, Any] = {"silu": True, "groups": self.groups, "eps": self.eps, **common}
        h = GroupNorm(name="norm1", **norm)(x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = Conv3x3(self.features, name="conv1", **common)(h)

        norm2 = GroupNorm(name="norm2", **norm)
        if embedding is None:
            h = norm2(h)
        else:
            width = 2 * self.features if self.scale_shift else self.features
            e = nn.Dense(width, dtype=self.dtype, name="embedding")(nn.silu(embedding))
            if self.scale_shift:
                scale, shift = jnp.split(e, 2, axis=-1)
                h = norm2(h, (scale, shift))
            else:
                h = norm2(h + e[:, None, None, :])

        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv3x3(self.features, zero=True, name="conv2", **common)(h)
        if x.shape[-1] != self.features:
            x = Dense(self.features, name="skip", **common)(x)
        return x + h


class ConvNeXtBlock(nn.Module):
    """A ConvNeXt block with an embedding (Liu et al. 2022).

    Depthwise 7x7, normalisation, embedding, then dense layers of `expansion` times the channels,
    added to x.

    Attributes:
      features: output channels.
      dropout: rate before the last dense layer.
      scale_shift: as in `ResNetBlock`.
      expansion: width of the hidden layer over `features`.
      dtype: compute type.
      ops: kernels of convolutions and normalisation.
    """

    features: int
    dropout: float = 0.0
    scale_shift: bool = True
    expansion: int = 2
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, embedding: Array, train: bool = False) -> Array:
        """x: (B, H, W, C), embedding: (B, E) -> (B, H, W, features)."""
        channels = x.shape[-1]
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        h = DepthwiseConv7x7(name="depthwise", **common)(x)

        width = 2 * channels if self.scale_shift else channels
        e = nn.Dense(width, dtype=self.dtype, name="embedding")(nn.silu(embedding))
        norm = GroupNorm(groups=1, name="norm", **common)
        if self.scale_shift:
            scale, shift = jnp.split(e, 2, axis=-1)
            h = norm(h, (scale, shift))
        else:
            h = norm(h) + e[:, None, None, :]

        h = nn.gelu(Dense(self.expansion * self.features, name="expand", **common)(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Dense(self.features, zero=True, name="contract", **common)(h)
        if channels != self.features:
            x = Dense(self.features, name="skip", **common)(x)
        return x + h


class DepthwiseConv7x7(nn.Module):
    """A depthwise 7x7 convolution with three pixels of zero padding."""

    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) -> the same shape."""
        channels = x.shape[-1]
        kernel = self.param("kernel", nn.linear.default_kernel_init, (7, 7, 1, channels))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        y = self.ops.conv(x.astype(self.dtype), kernel, bias, padding=3, groups=channels)
        return checkpoint_name(y, PRODUCT)


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    Attributes:
      at_end: whether the padding is below and to the right alone, as in the autoencoders of Esser
        et al. 2021, where an odd side is rounded down.
      dtype: compute type.
      ops: its kernel implementation.
    """

    at_end: bool = False
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.at_end:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        conv = Conv3x3(
            x.shape[-1], stride=2, padding=0 if self.at_end else 1, dtype=self.dtype, ops=self.ops,
            name="conv",
        )  # fmt: skip
        return conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, a crop to the size before downsampling, a 3x3 convolution.

    The crop allows odd sizes: 7 -> 4 -> 8 -> 7.
    """

    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, height: int, width: int) -> Array:
        """x: (B, H, W, C) -> (B, height, width, C), height and width about 2H and 2W."""
        x = nearest(x, height=height, width=width)
        return Conv3x3(x.shape[-1], dtype=self.dtype, ops=self.ops, name="conv")(x)


def average_pool(x: Array) -> Array:
    """Means of 2x2 pixels: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    At an odd border a mean is over the pixels that there are.
    """
    batch, height, width, channels = x.shape
    # A pixel repeated does not change the mean of the pixels that there are.
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels).mean((2, 4))


def nearest(x: Array, *, height: int, width: int) -> Array:
    """Each pixel four times, cropped: (B, H, W, C) -> (B, height, width, C), at most 2H and 2W."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :height, :width]


def space_to_depth(x: Array, patch: int) -> Array:
    """(B, H, W, C) -> (B, ceil(H/p), ceil(W/p), p p C), with edge padding if needed."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)), mode="edge")
    rows, columns = x.shape[1] // patch, x.shape[2] // patch
    x = x.reshape(batch, rows, patch, columns, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)


def depth_to_space(x: Array, patch: int, height: int, width: int) -> Array:
    """The inverse of `space_to_depth`, cropped to (B, height, width, C)."""
    batch, rows, columns, depth = x.shape
    x = x.reshape(batch, rows, columns, patch, patch, depth // patch**2)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch, columns * patch, -1)
    return jax.lax.slice_in_dim(x[:, :height], 0, width, axis=2)
