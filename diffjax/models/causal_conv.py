"""Convolutions over what is before a pixel in raster order, for whole images or step by step.

Each layer computes the same function in two ways:

    whole        all pixels of an image at once
    incremental  the row or the pixel at a `Place`, from the inputs at that place and those of
                 earlier calls, of which each convolution keeps the two or three rows that it needs
                 in the collection "cache"

A layer of stride 2 computes (r // 2, c // 2) again, to the same result, for each (r, c) of it.
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
    """What an incremental call computes: a row, or its pixel at a column; int32 scalars."""

    row: Array
    column: Array | None = None

    @property
    def indices(self) -> tuple[Array, Array]:
        """Row and first column."""
        return self.row, jnp.zeros_like(self.row) if self.column is None else self.column

    def halved(self) -> "Place":
        """The place at half the resolution."""
        return Place(self.row // 2, None if self.column is None else self.column // 2)


class Inputs(NamedTuple):
    """Padded inputs that a convolution keeps, (B, rows, columns, C), and the first row's number."""

    rows: Array
    first: Array


class WeightNorm(nn.Module):
    """gain v / |v| for each output channel, and a bias (Salimans & Kingma 2016, equation 2).

    The gain is trained; one of 1 keeps the mean square of uncorrelated inputs.
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
        """The outputs of x, which are all of the inputs, or those at a place."""
        shape = (*self.window, x.shape[-1])
        kernel, bias = WeightNorm(self.features, self.gain, name="kernel")(shape)
        x = x.astype(self.dtype)
        windows = self._all_windows(x) if place is None else self._windows(x, place)
        return self.ops.conv(windows, kernel, bias, stride=self.stride)

    def _all_windows(self, x: Array) -> Array:
        padded = self._padded(x)
        if self.is_mutable_collection(CACHE):
            self.variable(CACHE, "inputs", lambda: Inputs(padded[:, : self._rows], jnp.int32(0)))
        (height, width), (rows, columns) = self.window, x.shape[1:3]
        return padded[:, : rows + height - 1, : columns + width - 1]

    def _windows(self, x: Array, place: Place) -> Array:
        cache = self.variable(CACHE, "inputs", _no_cache)
        rows, first = cache.value
        start = place.row // self.stride * self.stride
        moved = jnp.roll(rows, -self.stride, axis=1)  # rows come round, but are of no window
        rows = jnp.where(start == first, rows, moved)
        _, column = place.indices
        at = (0, place.row - start + self.above, column + self.left, 0)
        rows = jax.lax.dynamic_update_slice(rows, x, at)
        cache.value = Inputs(rows, start)
        return self._of_rows(rows, place)

    def _of_rows(self, rows: Array, place: Place) -> Array:
        """The windows at a place, which start in the first of these padded rows."""
        height, width = self.window
        column = place.indices[1] // self.stride * self.stride
        if place.column is None:
            width += rows.shape[2] - self.left - self._right - 1
        return jax.lax.dynamic_slice_in_dim(rows[:, :height], column, width, axis=2)

    def _padded(self, x: Array) -> Array:
        """x with the zeros that windows reach around it."""
        rows, columns = (self.above, self.stride - 1), (self.left, self._right)
        return jnp.pad(x, ((0, 0), rows, columns, (0, 0)))

    @property
    def _rows(self) -> int:
        """How many rows there are from a window's first one to that of the place."""
        return self.above + self.stride

    @property
    def _right(self) -> int:
        """Columns of zeros on the right."""
        return max(0, self.window[1] - 1 - self.left) + self.stride - 1


class ImageConv(CausalConv):
    """A `CausalConv` that is passed all of the image so far in incremental calls, too."""

    def _windows(self, x: Array, place: Place) -> Array:
        padded = self._padded(x)
        start = place.row // self.stride * self.stride
        rows = jax.lax.dynamic_slice_in_dim(padded, start, self._rows, axis=1)
        return self._of_rows(rows, place)


def _no_cache() -> Inputs:
    raise ValueError("an incremental call needs the cache of `empty_cache`")


class Upsample(nn.Module):
    """A transposed convolution by a 2x2 kernel with stride 2: doubles the sides."""

    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int], place: Place | None = None) -> Array:
        """The outputs cut to a size, or those at a place, of x at `place.halved()`."""
        h = Linear(4 * x.shape[-1], dtype=self.dtype, ops=self.ops, name="linear")(x)
        if place is None:
            return depth_to_space(h, 2, *size)
        pairs = depth_to_space(h, 2, 2, 2 * h.shape[2])
        row, column = (n % 2 for n in place.indices)
        return jax.lax.dynamic_slice(
            pairs, (0, row, column, 0), (len(pairs), *size, pairs.shape[-1])
        )
