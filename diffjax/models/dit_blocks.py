"""The parts of a diffusion transformer: positions, attention, gated MLPs, and its block."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax.models.attention import Mixer
from diffjax.models.blocks import Dense
from diffjax.models.ops import XLA, Ops
from diffjax.models.transformer import Context
from diffjax.types import Array, Dtype

# Of each linear map by itself; that of q, k and v together counts all three as its outputs.
LINEAR_INIT = nn.initializers.xavier_uniform()
ZERO = nn.initializers.zeros_init()
EPSILON = 1e-6


def grid_positions(height: int, width: int) -> np.ndarray:
    """float32 (height width, 2): the row and the column of every patch."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows.ravel(), columns.ravel()], axis=-1).astype(np.float32)


def sincos_positions(positions: np.ndarray, channels: int) -> np.ndarray:
    """(L, 2) -> (L, channels): half of the features for the row, half for the column.

    Peebles & Xie 2023 (DiT), after He et al. 2022 (MAE): sin, then cos, of the coordinate times
    10000^(-k / n) for k = 0 ... n - 1, n = channels / 4.
    """
    n = channels // 4
    frequencies = 10_000.0 ** (-np.arange(n) / n)
    angles = positions[:, :, None] * frequencies  # (L, 2, n)
    features = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    # MAE's code has the column's features first.
    return features[:, ::-1].reshape(len(positions), 4 * n).astype(np.float32)


def rotary_angles(positions: np.ndarray, head_channels: int, *, base: float = 10_000.0) -> Array:
    """(L, 2) -> (L, head_channels / 2) angles: the first half by the row, the second by the column.

    Su et al. 2021 (RoPE) in two dimensions (Heo et al. 2024).
    """
    n = head_channels // 4
    frequencies = base ** (-np.arange(n) / n)
    return jnp.asarray((positions[:, :, None] * frequencies).reshape(len(positions), 2 * n))


def rotated(x: Array, angles: Array) -> Array:
    """x (B, L, heads, D) with each pair of channels (2k, 2k + 1) turned by its angle (L, D / 2).

    In float32 for every type of x. Positions without an angle, those after the L'-th, are left.
    """
    length = len(angles)
    pairs = x[:, :length].astype(jnp.float32).reshape(*x.shape[:1], length, x.shape[2], -1, 2)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    turned = turned.reshape(*x.shape[:1], length, *x.shape[2:]).astype(x.dtype)
    return jnp.concatenate([turned, x[:, length:]], axis=1)


def scaled(x: Array, scale: Array, shift: Array) -> Array:
    """scale x + shift in float32, of x's type."""
    return (scale * x.astype(jnp.float32) + shift.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6), times a learned scale (Zhang & Sennrich 2019); in float32."""

    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., C) -> the same shape."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        return self.ops.rms_norm(x.astype(self.dtype), scale, eps=EPSILON)


class LayerNorm(nn.Module):
    """A layer norm without scale and shift, in float32 (DiT's, whose adaLN has them)."""

    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., C) -> the same shape."""
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + EPSILON)
        return wide.astype(self.dtype)


class Gelu(nn.Module):
    """An MLP with `hidden` channels and the tanh form of GELU."""

    hidden: int
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., C) -> the same shape."""
        linear = partial(Dense, kernel_init=LINEAR_INIT, dtype=self.dtype, ops=self.ops)
        h = nn.gelu(linear(self.hidden, name="in")(x), approximate=True)
        return linear(x.shape[-1], name="out")(h)


class SwiGlu(nn.Module):
    """out(silu(gate(x)) value(x)) with 2/3 of `hidden` channels (Shazeer 2020)."""

    hidden: int
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., C) -> the same shape."""
        linear = partial(Dense, kernel_init=LINEAR_INIT, dtype=self.dtype, ops=self.ops)
        h = linear(2 * (2 * self.hidden // 3), name="in")(x)
        return linear(x.shape[-1], name="out")(self.ops.swiglu(h))


class Block(nn.Module):
    """Attention, cross-attention to a context, and an MLP, each with adaLN-zero.

    x + gate norm(x)(1 + scale) + shift) with shift, scale and gate linear in the conditioning
    vector and zero at first (Peebles & Xie 2023, section 3.2); the cross-attention's output is zero
    at first (Chen et al. 2024, PixArt-alpha).

    Attributes:
      head_channels: channels per head.
      hidden: of the MLP.
      norm, mlp: `LayerNorm` or `RMSNorm`; `Gelu` or `SwiGlu`.
      qk_norm: whether queries and keys are normalised (Henry et al. 2020).
      dropout: rate after attention and MLP.
      mix: of the self-attention, see `attention.SelfAttention`.
      dtype: compute type.
      ops: kernels of the linear maps.
    """

    head_channels: int
    hidden: int
    norm: Callable[..., nn.Module] = RMSNorm
    mlp: Callable[..., nn.Module] = SwiGlu
    qk_norm: bool = True
    dropout: float = 0.0
    mix: Mixer = jax.nn.dot_product_attention
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(
        self,
        x: Array,
        vector: Array,
        angles: Array | None,
        context: Context | None,
        perturbed: Array | None,
        dropped: Array | None,
        train: bool,
    ) -> Array:
        """One block.

        Args:
          x: (B, L, C) tokens.
          vector: (B, D) float32, of all conditions.
          angles: of `rotary_angles`; None for none.
          context: to attend to, or None.
          perturbed: bool scalar: whether each token attends to itself alone; None for no.
          dropped: bool scalar: whether this block has dropout; None for yes.
          train: whether dropout is on.
        """
        width = x.shape[-1]
        normalised = partial(self.norm, dtype=self.dtype, ops=self.ops)
        dropout = nn.Dropout(self.dropout, deterministic=not train)

        def drop(h: Array) -> Array:
            return dropout(h) if dropped is None else jnp.where(dropped, dropout(h), h)

        modulation = nn.Dense(6 * width, kernel_init=ZERO, name="modulation")(nn.silu(vector))
        parts = jnp.split(modulation[:, None], 6, axis=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        h = scaled(normalised(name="norm")(x), 1 + scale, shift)
        x = scaled(drop(self._attend(h, angles, perturbed)), gate, x)
        if context is not None:
            h = normalised(name="cross_norm")(x)
            x = x + self._cross(h, context)
        h = scaled(normalised(name="mlp_norm")(x), 1 + mlp_scale, mlp_shift)
        mlp = self.mlp(self.hidden, dtype=self.dtype, ops=self.ops, name="mlp")
        return scaled(drop(mlp(h)), mlp_gate, x)

    def _attend(self, h: Array, angles: Array | None, perturbed: Array | None) -> Array:
        batch, length, width = h.shape
        qkv = jnp.split(self._linear(3 * width, "qkv")(h), 3, axis=-1)
        q, k, v = (y.reshape(batch, length, -1, self.head_channels) for y in qkv)
        q, k = self._ready(q, angles, "q"), self._ready(k, angles, "k")
        mixed = self.mix(q, k, v)
        if perturbed is not None:
            mixed = jnp.where(perturbed, v, mixed)
        return self._linear(width, "out")(mixed.reshape(h.shape))

    def _ready(self, x: Array, angles: Array | None, name: str) -> Array:
        if self.qk_norm:
            x = RMSNorm(dtype=self.dtype, ops=self.ops, name=f"{name}_norm")(x)
        return x if angles is None else rotated(x, angles)

    def _cross(self, h: Array, context: Context) -> Array:
        batch, _, width = h.shape
        heads = (batch, -1, width // self.head_channels, self.head_channels)
        tokens = context.tokens.astype(self.dtype)
        q = self._linear(width, "cross_q")(h).reshape(heads)
        k, v = jnp.split(self._linear(2 * width, "cross_kv")(tokens), 2, axis=-1)
        k, v = k.reshape(heads), v.reshape(heads)
        if self.qk_norm:
            q = RMSNorm(dtype=self.dtype, ops=self.ops, name="cross_q_norm")(q)
            k = RMSNorm(dtype=self.dtype, ops=self.ops, name="cross_k_norm")(k)
        mixed = jax.nn.dot_product_attention(q, k, v, mask=context.of_scores).reshape(h.shape)
        return self._linear(width, "cross_out", zero=True)(mixed)

    def _linear(self, features: int, name: str, *, zero: bool = False) -> Dense:
        return Dense(
            features, zero=zero, kernel_init=LINEAR_INIT, dtype=self.dtype, ops=self.ops, name=name
        )
