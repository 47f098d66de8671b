"""PixelCNN++: a distribution of each pixel given those before it (Salimans et al. 2017, section 2).

Pixels are in raster order. Two streams of features see what is before pixel (r, c) and no more:

    down        rows above r, at any column
    down-right  those and, of row r, the columns left of c

The down stream knows nothing of the other one. Both are U-Nets of gated residual blocks with
shortcuts; on a level of half the resolution, (r // 2, c // 2) again sees no more than what is
before (r, c).

An image is sampled by incremental calls (`causal_conv`), a row of the down stream or a pixel of the
other one at a time, by the multiplications of two or three evaluations of the whole network instead
of one for each pixel (a level of lower resolution costs as much as the first one).

Differences from the paper's code: weight normalisation starts from kernels of norm 1, so that
parameters follow from the seed alone; both streams are upsampled by 2x2 kernels.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.causal_conv import CACHE, CausalConv, ImageConv, Linear, Place, Upsample
from diffjax.models.ops import XLA, Ops
from diffjax.types import Array, Dtype


def concat_elu(x: Array) -> Array:
    """elu(x) and elu(-x): twice the channels."""
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


class GatedBlock(nn.Module):
    """x + a sigmoid(b), where a and b are of two convolutions of concatenated ELUs of x.

    Their `window` is (2, 3) in the down stream and (2, 2) in the other one; `dropout` is the rate
    before the second one.
    """

    window: tuple[int, int]
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(
        self, x: Array, other: Array | None, label: Array | None, place: Place | None, train: bool
    ) -> Array:
        """Of x's shape, (B, H, W, C), from x, a shortcut or the other stream, and one-hot classes.

        `place` is that of `CausalConv`; `train` is whether there is dropout.
        """
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        channels = x.shape[-1]
        h = CausalConv(channels, self.window, name="conv1", **common)(concat_elu(x), place)
        if other is not None:
            h = h + Linear(channels, name="other", **common)(concat_elu(other))
        h = nn.Dropout(self.dropout, deterministic=not train)(concat_elu(h))
        h = CausalConv(2 * channels, self.window, gain=0.1, name="conv2", **common)(h, place)
        if label is not None:
            shift = nn.Dense(2 * channels, use_bias=False, dtype=self.dtype, name="label")(label)
            h = h + shift[:, None, None]
        a, b = jnp.split(h, 2, axis=-1)
        return x + a * nn.sigmoid(b)


class Stream(nn.Module):
    """A U-Net of gated blocks: `levels` resolutions there and back, with shortcuts.

    There are `blocks` on each level, and one more on the way back, except on the last level.
    """

    window: tuple[int, int]
    blocks: int = 5
    levels: int = 3
    dropout: float = 0.5
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(
        self, h: Array, label: Array | None, place: Place | None, train: bool, others: Any = None
    ) -> tuple[Array, list[Array]]:
        """The features of the last block and of all, with those of another stream's, whole rows."""
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        places = [place]
        for _ in range(self.levels - 1):
            places.append(places[-1] and places[-1].halved())
        features: list[Array] = []

        def block(h: Array, shortcut: Array | None, level: int) -> Array:
            inputs = [] if shortcut is None else [shortcut]
            if others is not None:
                inputs.append(_at(others[len(features)], places[level]))
            other = jnp.concatenate(inputs, axis=-1) if inputs else None
            h = GatedBlock(self.window, self.dropout, name=f"block_{len(features)}", **common)(
                h, other, label, places[level], train
            )
            features.append(h)
            return h

        shortcuts = [h]
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = block(h, None, level)
                shortcuts.append(h)
            if level + 1 < self.levels:
                h = CausalConv(h.shape[-1], self.window, stride=2, name=f"down_{level}", **common)(
                    h, places[level]
                )
                shortcuts.append(h)
        shortcuts.pop()  # h itself
        for level in reversed(range(self.levels)):
            for _ in range(self.blocks + (level + 1 < self.levels)):
                h = block(h, shortcuts.pop(), level)
            if level:
                size = shortcuts[-1].shape[1:3]
                h = Upsample(name=f"up_{level}", **common)(h, size, places[level - 1])
        return h, features


def _at(row: Array, place: Place | None) -> Array:
    """A row's features at a place's column; unchanged if they are of the whole image."""
    if place is None or place.column is None:
        return row
    return jax.lax.dynamic_slice_in_dim(row, place.column, 1, axis=2)


class PixelCNN(nn.Module):
    """Both streams: each pixel's parameters from the pixels before it and the class.

    `outputs` is the number of a pixel's parameters, `num_classes` 0 for a network without classes.
    """

    outputs: int
    num_classes: int = 0
    channels: int = 160
    blocks: int = 5
    levels: int = 3
    dropout: float = 0.5
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    def setup(self) -> None:
        kernels: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        stream = {"blocks": self.blocks, "levels": self.levels, "dropout": self.dropout, **kernels}
        self.rows_above = ImageConv(self.channels, (2, 3), above=2, **kernels)
        self.row_above = ImageConv(self.channels, (1, 3), **kernels)
        self.columns_left = ImageConv(self.channels, (2, 1), **kernels)
        self.down = Stream((2, 3), **stream)
        self.down_right = Stream((2, 2), **stream)
        self.head = Linear(self.outputs, **kernels)

    def __call__(self, x: Array, label: Array | None = None, train: bool = False) -> Array:
        """The parameters of all pixels, each of the pixels before it: (B, H, W, outputs) float32.

        Args:
          x: (B, H, W, C) in [-1, 1].
          label: (B,) integers, -1 for none; None for a network without classes.
          train: whether there is dropout, by the stream "dropout".
        """
        return self._pixels(x, label, self._rows(x, label, None, train), None, train)

    def row(self, x: Array, label: Array | None, row: Array) -> list[Array]:
        """The down stream's features of a row, after incremental calls for the rows above it."""
        return self._rows(x, label, Place(row), False)

    def pixel(
        self, x: Array, label: Array | None, features: list[Array], row: Array, column: Array
    ) -> Array:
        """(B, outputs): a pixel's parameters, after calls for its row and the pixels before it."""
        return self._pixels(x, label, features, Place(row, column), False)[:, 0, 0]

    def _rows(self, x: Array, label: Array | None, place: Place | None, train: bool) -> list[Array]:
        h = self.rows_above(_with_ones(x), place)
        return self.down(h, self._one_hot(label), place, train)[1]

    def _pixels(
        self, x: Array, label: Array | None, features: list[Array], place: Place | None, train: bool
    ) -> Array:
        image = _with_ones(x)
        h = self.row_above(image, place) + self.columns_left(image, place)
        h, _ = self.down_right(h, self._one_hot(label), place, train, features)
        return self.head(nn.elu(h)).astype(jnp.float32)

    def _one_hot(self, label: Array | None) -> Array | None:
        return None if label is None else jax.nn.one_hot(label, self.num_classes)


def _with_ones(x: Array) -> Array:
    """x with a channel of ones, which tells the image from the zeros around it."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)


def empty_cache(network: PixelCNN, params: Any, x: Array, label: Array | None) -> Any:
    """The cache of incremental calls before the first one, for images like x."""
    whole = partial(network.apply, mutable=[CACHE])
    shapes = jax.eval_shape(whole, {"params": params}, x, label)[1][CACHE]
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
