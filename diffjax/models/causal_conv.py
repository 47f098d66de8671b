"""Convolutions over what is before a pixel in raster order, for whole images or step by step.

Each layer computes the same function in two ways:

    whole        all pixels of an image at once
    incremental  the row or the pixel at a `Place`, from the inputs at that place and those of
                 earlier calls, which each convolution keeps in the collection "cache"

Incrementally, a layer of stride 2 computes (r // 2, c // 2) again for each of the pixels (r, c)
that share it, from unchanged inputs, and so to the same result.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.blocks import depth_to_space
from diffjax.models.ops import XLA, Ops
from diffjax.types import Array, Dtype

CACHE = "cache"


class Place(NamedTuple):
    """What an incremental call computes, in coordinates of its level.

    Attributes:
      row: int32 scalar.
      column: int32 scalar; None for all columns of the row.
    """

    row: Array
    column: Array | None = None

    @property
    def indices(self) -> tuple[Array, Array]:
        """Row and first column."""
        return self.row, jnp.zeros_like(self.row) if self.column is None else self.column

    def halved(self) -> "Place":
        """The place at half the resolution."""
        return Place(self.row // 2, None if self.column is None else self.column // 2)


class WeightNorm(nn.Module):
    """scale v / |v| and a bias, the kernel of a layer (Salimans & Kingma 2016, equation 2).

    Attributes:
      features: output channels, the kernel's last axis, for each of which there is a norm.
      gain: the initial scale; 1 keeps the mean square of uncorrelated inputs.
    """

    features: int
    gain: float = 1.0

    @nn.compact
    def __call__(self, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """The kernel (*shape, features) and the bias (features,), float32."""
        v = self.param("direction", nn.initializers.normal(0.05), (*shape, self.features))
        scale = self.param("scale", nn.initializers.constant(self.gain), (self.features,))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        squares = jnp.square(v).sum(tuple(range(len(shape))))
        return v * (scale * jax.lax.rsqrt(squares + 1e-12)), bias


class Linear(nn.Module):
    """A linear map of every pixel's channels, a 1x1 convolution."""

    features: int
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, ..., C) -> (B, ..., features)."""
        kernel, bias = WeightNorm(self.features, name="kernel")((x.shape[-1],))
        return self.ops.dense(x.astype(self.dtype), kernel, bias)


class CausalConv(nn.Module):
    """A convolution whose window for (r, c) starts `above` rows and `left` columns before it.

    Attributes:
      features: output channels.
      window: (height, width).
      above, left: where the window starts; its last row is r or an earlier one.
      stride: 2 computes (r // 2, c // 2) from the window of (r, c), r and c even.
      gain: see `WeightNorm`.
      dtype, ops: as in `blocks.Conv3x3`.
    """

    features: int
    window: tuple[int, int]
    above: int = 1
    left: int = 1
    stride: int = 1
    gain: float = 1.0
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, place: Place | None = None) -> Array:
        """All of the outputs, or those at a place.

        Args:
          x: the inputs: all of them if `place` is None, else those at the place.
          place: of the input; None for all.
        """
        shape = (*self.window, x.shape[-1])
        kernel, bias = WeightNorm(self.features, self.gain, name="kernel")(shape)
        x = x.astype(self.dtype)
        windows = self._all_windows(x) if place is None else self._windows(x, place)
        return self.ops.conv(windows, kernel, bias, stride=self.stride)

    def _all_windows(self, x: Array) -> Array:
        padded = self._padded(x)
        if self.is_mutable_collection(CACHE):
            self.variable(CACHE, "padded", lambda: padded)
        rows = padded.shape[1] - (self.above + 1 - self.window[0])
        return padded[:, :rows, : self._columns(padded)]

    def _windows(self, x: Array, place: Place) -> Array:
        cache = self.variable(CACHE, "padded", _no_cache)
        before = cache.value
        row, column = place.indices
        cache.value = jax.lax.dynamic_update_slice(
            before, x, (0, row + self.above, column + self.left, 0)
        )
        # The inputs before this call and x in its place: a window of what has just been written
        # would have XLA copy the whole cache.
        windows = self._slice(before, place)
        first_row, first_column = self._start(place)
        is_x = (first_row + jnp.arange(windows.shape[1]) == row + self.above)[:, None, None]
        if place.column is None:
            x = self._padded(x)[:, self.above :, : windows.shape[2]]
        else:
            columns = first_column + jnp.arange(windows.shape[2])
            is_x = is_x & (columns == column + self.left)[:, None]
        return jnp.where(is_x, x, windows)

    def _slice(self, padded: Array, place: Place) -> Array:
        """The inputs of the windows at a place."""
        height, width = self.window
        size = (height, self._columns(padded) if place.column is None else width)
        return jax.lax.dynamic_slice(
            padded, (0, *self._start(place), 0), (len(padded), *size, padded.shape[-1])
        )

    def _start(self, place: Place) -> tuple[Array, Array]:
        """Where the windows at a place start, with padding."""
        row, column = (n // self.stride * self.stride for n in place.indices)
        return row, column

    def _columns(self, padded: Array) -> int:
        """The columns of padded inputs that a window reaches."""
        return padded.shape[2] - max(0, self.left + 1 - self.window[1])

    def _padded(self, x: Array) -> Array:
        """x with the zeros that windows reach around it."""
        right = max(0, self.window[1] - 1 - self.left)
        return jnp.pad(x, ((0, 0), (self.above, 0), (self.left, right), (0, 0)))


class ImageConv(CausalConv):
    """A `CausalConv` that is passed all of the image so far in incremental calls, too."""

    def _windows(self, x: Array, place: Place) -> Array:
        return self._slice(self._padded(x), place)


def _no_cache() -> Array:
    raise ValueError("an incremental call needs the cache of `empty_cache`")


class Upsample(nn.Module):
    """A transposed convolution by a 2x2 kernel with stride 2: doubles the sides."""

    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int], place: Place | None = None) -> Array:
        """The outputs cut to a size, or those at a place of the output's level.

        Args:
          x: (B, H, W, C), of half the resolution; in incremental calls at `place.halved()`.
          size: (height, width) of the result.
          place: see `CausalConv`.
        """
        h = Linear(4 * x.shape[-1], dtype=self.dtype, ops=self.ops, name="linear")(x)
        if place is None:
            return depth_to_space(h, 2, *size)
        pairs = depth_to_space(h, 2, 2, 2 * h.shape[2])
        row, column = (n % 2 for n in place.indices)
        return jax.lax.dynamic_slice(
            pairs, (0, row, column, 0), (len(pairs), *size, pairs.shape[-1])
        )
