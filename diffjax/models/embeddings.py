"""Embeddings of time and class, and Fourier features of an image."""

import math

import flax.linen as nn
import jax.numpy as jnp

from diffjax.types import Array, Dtype


def timestep_embedding(t: Array, dim: int, *, max_period: float = 10_000.0) -> Array:
    """Sinusoidal features [cos(t f_k), sin(t f_k)], f_k = max_period^(-k / (dim / 2)).

    The order and frequencies of guided-diffusion (Dhariwal & Nichol 2021), after Vaswani et al.
    2017. Frequencies and angles are float32 for every compute type: at t = 999 a bfloat16 angle
    can be off by more than 2 pi.

    Args:
      t: (B,) times, about 0..1000.
      dim: number of features; if odd, the last one is zero.
      max_period: the longest period, over 2 pi.

    Returns:
      (B, dim) float32.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, dim - 2 * half)))


def fourier_features(h: Array, x: Array, exponents: tuple[int, ...]) -> Array:
    """h with sin(2^n pi x) and cos(2^n pi x) concatenated for each exponent n; h itself for none.

    Kingma et al. 2021 (VDM), appendix C. Angles are float32 for every compute type.

    Args:
      h: (B, H, W, C').
      x: (B, H, W, C), about [-1, 1]. Neighbouring 8-bit levels differ by 2 / 255, which is a phase
        of about pi for n = 6 and 2 pi for n = 7.
      exponents: the n.
    """
    if not exponents:
        return h
    angles = jnp.concatenate([2.0**n * math.pi * x.astype(jnp.float32) for n in exponents], -1)
    return jnp.concatenate([h, jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Sinusoidal features and two dense layers: (B,) -> (B, width)."""

    features: int
    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, t: Array) -> Array:
        h = timestep_embedding(t, self.features).astype(self.dtype)
        h = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="in")(h))
        return nn.Dense(self.width, dtype=self.dtype, name="out")(h)


class ClassEmbedding(nn.Module):
    """A learned vector per class, and one for the null class: (B,) int -> (B, width).

    Labels 0..num_classes-1 are classes; a negative label is the null class, trained by label
    dropout and used by classifier-free guidance (Ho & Salimans 2022).
    """

    num_classes: int
    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, labels: Array) -> Array:
        rows = jnp.where(labels < 0, self.num_classes, labels)
        return nn.Embed(
            self.num_classes + 1,
            self.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(1.0),
            name="table",
        )(rows)
