"""The most expensive operations of networks, as exchangeable functions.

`XLA` is plain JAX and runs everywhere; `diffjax.accelerator` has faster ones for CPUs.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from diffjax.types import Array


class Conv(Protocol):
    """conv(x, kernel, bias, stride=, padding=, groups=) -> the convolved images."""

    def __call__(
        self,
        x: Array,
        kernel: Array,
        bias: Array,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> Array:
        """Cross-correlates x with the kernel and adds the bias.

        Args:
          x: (B, H, W, C) float32 or bfloat16.
          kernel: (h, w, C / groups, F) float32.
          bias: (F,) float32.
          stride: step of the window in both directions.
          padding: zeros on every side of x.
          groups: number of channel groups, each with its own kernels.

        Returns:
          (B, H', W', F) of x's type.
        """
        ...


class Dense(Protocol):
    """dense(x, kernel, bias) -> every pixel's channels, multiplied by a matrix."""

    def __call__(self, x: Array, kernel: Array, bias: Array) -> Array:
        """x kernel + bias.

        Args:
          x: (B, ..., C) float32 or bfloat16.
          kernel: (C, F) float32.
          bias: (F,) float32.

        Returns:
          (B, ..., F) of x's type.
        """
        ...


class GroupNorm(Protocol):
    """group_norm(x, scale, shift, groups=, eps=, silu=) -> normalised images."""

    def __call__(
        self, x: Array, scale: Array, shift: Array, *, groups: int, eps: float, silu: bool
    ) -> Array:
        """act(scale (x - mean) / sqrt(variance + eps) + shift) (Wu & He 2018).

        Mean and variance are over all pixels and the channels of a group, in float32; in float64 if
        x is, which `XLA` allows.

        Args:
          x: (B, ..., C) float32 or bfloat16.
          scale: (B, C) float32.
          shift: (B, C) float32.
          groups: a divisor of C.
          eps: added to the variance.
          silu: whether act is SiLU, u sigmoid(u); else the identity.

        Returns:
          Of x's shape and type.
        """
        ...


class Attention(Protocol):
    """attention(q, k, v) -> softmax(q k^T / sqrt(D)) v, for each head."""

    def __call__(self, q: Array, k: Array, v: Array, /) -> Array:
        """Softmax attention (Vaswani et al. 2017, equation 1).

        Args:
          q: (B, L, heads, D) float32 or bfloat16.
          k, v: (B, L', heads, D) of q's type.

        Returns:
          Of q's shape and type.
        """
        ...


class RMSNorm(Protocol):
    """rms_norm(x, scale, eps=) -> normalised rows."""

    def __call__(self, x: Array, scale: Array, *, eps: float) -> Array:
        """scale x / sqrt(mean(x^2) + eps), the mean over the last axis (Zhang & Sennrich 2019).

        Args:
          x: (..., C) float32 or bfloat16; the mean is float32.
          scale: (C,) float32.
          eps: added to the mean.

        Returns:
          Of x's shape and type.
        """
        ...


def rms_norm(x: Array, scale: Array, *, eps: float) -> Array:
    """`RMSNorm` in jax."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)


class SwiGlu(Protocol):
    """swiglu(x) -> the gated half of the channels."""

    def __call__(self, x: Array, /) -> Array:
        """silu(gate) value, of the first and the second half of x's channels (Shazeer 2020).

        Args:
          x: (..., 2 C) float32 or bfloat16.

        Returns:
          (..., C) of x's type.
        """
        ...


def swiglu(x: Array) -> Array:
    """`SwiGlu` in jax."""
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


class Ops(NamedTuple):
    """The operations of a network on images.

    Attributes:
      conv: see `Conv`.
      dense: see `Dense`.
      group_norm: see `GroupNorm`.
      attention: see `Attention`.
      rms_norm: see `RMSNorm`.
      swiglu: see `SwiGlu`.
    """

    conv: Conv
    dense: Dense
    group_norm: GroupNorm
    attention: Attention = jax.nn.dot_product_attention
    rms_norm: RMSNorm = rms_norm
    swiglu: SwiGlu = swiglu


def conv(
    x: Array, kernel: Array, bias: Array, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Array:
    """`Conv` by XLA's convolution."""
    y = jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y + bias.astype(x.dtype)


def dense(x: Array, kernel: Array, bias: Array) -> Array:
    """`Dense` by XLA's matrix product."""
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def group_norm(
    x: Array, scale: Array, shift: Array, *, groups: int, eps: float, silu: bool
) -> Array:
    """`GroupNorm` in jax: sums per channel, then per group, then one multiply-add over the image.

    On a CPU this takes half the time of normalising a (B, H, W, groups, C / groups) view.
    """
    batch, channels = x.shape[0], x.shape[-1]
    space = tuple(range(1, x.ndim - 1))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))

    # (B, C) -> mean over a group, repeated for its channels.
    def group_mean(per_channel: Array) -> Array:
        grouped = per_channel.reshape(batch, groups, channels // groups)
        return jnp.repeat(grouped.mean(-1), channels // groups, axis=-1)

    mean = group_mean(wide.mean(space))
    variance = group_mean(jnp.square(wide).mean(space)) - jnp.square(mean)
    multiplier = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + eps) * scale
    offset = shift - mean * multiplier
    shape = (batch,) + (1,) * len(space) + (channels,)
    y = wide * multiplier.reshape(shape) + offset.reshape(shape)
    return (jax.nn.silu(y) if silu else y).astype(x.dtype)


XLA = Ops(conv, dense, group_norm)
