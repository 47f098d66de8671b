r"""Layers that preserve magnitudes: unit variance in, unit variance out (Karras et al. 2024, EDM2).

    normalise(x) = x / (rms(x) + 1e-4)                                                      (1)
    weight       = gain normalise(w) / sqrt(fan in),  w ~ N(0, 1)                           (2)
    mp_silu(x)   = silu(x) / 0.596                                                          (3)
    mp_sum(a, b) = ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)                                (4)
    mp_cat(a, b) = c [(1 - t) / sqrt(N_a) a, t / sqrt(N_b) b],
                   c = sqrt((N_a + N_b) / ((1 - t)^2 + t^2))                                (5)

"Analyzing and improving the training dynamics of diffusion models", sections 2.2 to 2.5, and
appendix B. The inputs of (3) to (5) are taken to be independent and of unit variance, (3) also
normal. There are no biases, and no normalisation over groups of channels. By (2) the function does
not depend on the length of w, so a gradient is orthogonal to w, and w would grow: `project` sets it
back after every update, and the learning rate is then the one relative to the weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from diffjax.models.attention import Mixer, number_of_heads
from diffjax.models.ops import XLA, Ops
from diffjax.models.remat import PRODUCT
from diffjax.types import Array, Dtype

EPSILON = 1e-4
# Half precision's largest number is 65,504, and squares are summed.
LARGEST = 256.0


def normalise(x: Array, axes: int | Sequence[int]) -> Array:
    """Equation (1), with the root mean square over these axes, in float32; of x's type."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The square root of 0 has no derivative.
    mean_square = jnp.square(wide).mean(axes, keepdims=True) + 1e-20
    return (wide / (jnp.sqrt(mean_square) + EPSILON)).astype(x.dtype)


def mp_silu(x: Array) -> Array:
    """Equation (3)."""
    return jax.nn.silu(x) / 0.596


def mp_sum(a: Array, b: Array, t: float) -> Array:
    """Equation (4), with b's share t in [0, 1]."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(a: Array, b: Array, t: float) -> Array:
    """Equation (5) along the last axis: a contributes 1 - t to what follows and b t, whatever their
    numbers of channels."""
    of_a, of_b = a.shape[-1], b.shape[-1]
    scale = math.sqrt(of_a + of_b) / math.hypot(1 - t, t)
    return jnp.concatenate(
        [a * (scale * (1 - t) / math.sqrt(of_a)), b * (scale * t / math.sqrt(of_b))], axis=-1
    )


def mp_fourier(t: Array, dim: int, *, bandwidth: float = 1.0) -> Array:
    """sqrt(2) cos(2 pi (w_k t + b_k)), w_k ~ N(0, bandwidth^2), b_k uniform, fixed.

    They are the same numbers in every network, so they are no parameters.

    Args:
      t: (B,) times.
      dim: number of features.
      bandwidth: standard deviation of the frequencies, in cycles per unit of t. 1, the paper's, is
        for EDM's log(sigma) / 4.

    Returns:
      (B, dim) float32.
    """
    # RandomState's numbers will not change with NumPy's versions: trained networks rely on them.
    drawn = np.random.RandomState(0)
    frequencies, phases = bandwidth * drawn.standard_normal(dim), drawn.uniform(size=dim)
    cycles = t.astype(jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)
    return math.sqrt(2) * jnp.cos(2 * jnp.pi * (cycles + jnp.asarray(phases, jnp.float32)))


def project(params: Any) -> Any:
    """The parameters with every "kernel" normalised over all axes but the output's, which is last.

    Then its norm is sqrt(fan in) for each output ("forced weight normalisation", section 2.3).
    """

    def one(path: Any, leaf: Array) -> Array:
        return _unit(leaf) if getattr(path[-1], "key", None) == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def _unit(kernel: Array) -> Array:
    return normalise(kernel, tuple(range(kernel.ndim - 1)))


def _weight(kernel: Array, gain: Array | float) -> Array:
    """Equation (2)."""
    return _unit(kernel) * (gain / math.sqrt(kernel.size // kernel.shape[-1]))


class MPConv3x3(nn.Module):
    """A 3x3 convolution with one pixel of zero padding.

    Attributes:
      features: output channels.
      dtype: compute type.
      ops: its kernel implementation.
    """

    features: int
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
        """(B, H, W, C) -> (B, H, W, features)."""
        init = nn.initializers.normal(1.0)
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        y = self.ops.conv(
            x.astype(self.dtype), _weight(kernel, gain), jnp.zeros(self.features), padding=1
        )
        return checkpoint_name(y, PRODUCT)


class MPDense(nn.Module):
    """A linear map of the channels; attributes as in `MPConv3x3`."""

    features: int
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
        """(B, ..., C) -> (B, ..., features)."""
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], self.features))
        y = self.ops.dense(
            x.astype(self.dtype), _weight(kernel, gain), jnp.zeros(self.features)
        )  # fmt: skip
        return checkpoint_name(y, PRODUCT)


class MPAttention(nn.Module):
    """mix(q, k, v) of normalised queries, keys and values, over the pixels of a map.

    Products of queries and keys are cosines times sqrt(head_channels), so softmax can't saturate.

    Attributes:
      head_channels: channels per head.
      mix: `jax.nn.dot_product_attention` or another `attention.Mixer`.
      dtype, ops: as in `MPConv3x3`.
    """

    head_channels: int
    mix: Mixer = jax.nn.dot_product_attention
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) -> the same shape."""
        batch, height, width, channels = x.shape
        heads = number_of_heads(channels, self.head_channels)
        qkv = MPDense(3 * channels, self.dtype, self.ops, name="qkv")(x)
        qkv = normalise(qkv.reshape(batch, -1, 3 * heads, self.head_channels), -1)
        q, k, v = jnp.split(qkv, 3, axis=2)
        h = self.mix(q, k, v).reshape(batch, height, width, channels)
        return MPDense(channels, self.dtype, self.ops, name="out")(h)


class MPBlock(nn.Module):
    """A residual block, silu - conv twice, and attention (EDM2, appendix B).

    The embedding scales the channels between the convolutions, by 1 at first: its gain is learned.

    Attributes:
      features: output channels.
      encoder: whether the pixels' vectors are normalised at the entrance, after a change of
        channels; the decoder's blocks change channels on the skip path alone.
      mix: of the attention; None for a block without.
      head_channels: of the attention.
      resample: changes the resolution first, as `blocks.average_pool`; None keeps it.
      dropout: rate before the second convolution.
      residual_balance, attention_balance: t of equation (4).
      dtype, ops: as in `MPConv3x3`.
    """

    features: int
    encoder: bool
    mix: Mixer | None = None
    head_channels: int = 64
    resample: Callable[[Array], Array] | None = None
    dropout: float = 0.0
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, vector: Array, train: bool = False) -> Array:
        """x: (B, H, W, C), vector: (B, E) float32 -> (B, H', W', features)."""
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        if self.resample is not None:
            x = self.resample(x)
        skip = None
        if x.shape[-1] != self.features:
            skip = MPDense(self.features, name="skip", **common)
        if self.encoder:
            x = normalise(x if skip is None else skip(x), -1)
        h = MPConv3x3(self.features, name="conv1", **common)(mp_silu(x))
        gain = self.param("gain", nn.initializers.zeros, ())
        scale = 1 + MPDense(self.features, name="embedding")(vector, gain)
        h = mp_silu(h * scale[:, None, None].astype(h.dtype))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = MPConv3x3(self.features, name="conv2", **common)(h)
        if not self.encoder and skip is not None:
            x = skip(x)
        x = mp_sum(x, h, self.residual_balance)
        if self.mix is not None:
            attend = MPAttention(self.head_channels, self.mix, name="attention", **common)
            x = mp_sum(x, attend(x), self.attention_balance)
        return jnp.clip(x, -LARGEST, LARGEST)
