"""Embeddings of time and class, and Fourier features of an image."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer

from diffjax.types import Array, Dtype


def timestep_embedding(
    t: Array,
    dim: int,
    *,
    max_period: float = 10_000.0,
    shift: float = 0.0,
    sine_first: bool = False,
) -> Array:
    """Sinusoidal features [cos(t f_k), sin(t f_k)], f_k = max_period^(-k / (dim / 2 - shift)).

    The order and frequencies of guided-diffusion (Dhariwal & Nichol 2021), after Vaswani et al.
    2017. Frequencies and angles are float32 for every compute type: at t = 999 a bfloat16 angle
    can be off by more than 2 pi.

    Args:
      t: (B,) times, about 0..1000.
      dim: number of features; if odd, the last one is zero.
      max_period: the longest period, over 2 pi.
      shift: 0, or 1 for frequencies down to 1 / max_period, both ends included, as in DDPM's code.
      sine_first: whether the sines come before the cosines, as in DDPM's code.

    Returns:
      (B, dim) float32.
    """
    half = dim // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - shift)
    frequencies = jnp.exp(-math.log(max_period) * exponents)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    waves = [jnp.cos(angles), jnp.sin(angles)]
    features = jnp.concatenate(waves[::-1] if sine_first else waves, axis=-1)
    return jnp.pad(features, ((0, 0), (0, dim - 2 * half)))


def random_time_features(t: Array, dim: int, *, scale: float = 0.016) -> Array:
    """Random Fourier features [cos(2 pi w_k t), sin(2 pi w_k t)], w_k ~ N(0, scale^2), fixed.

    Song et al. 2021b, appendix G ("NCSN++"), after Tancik et al. 2020. The w_k are the same numbers
    in every network, so they are no parameters that an optimizer would decay. Angles are float32
    for every compute type.

    Args:
      t: (B,) times.
      dim: number of features; if odd, the last one is zero.
      scale: standard deviation of the frequencies, in cycles per unit of t. 16, the paper's, is for
        inputs about [-1, 1] such as EDM's log(sigma) / 4; 0.016 is the same for t in 0..1000.

    Returns:
      (B, dim) float32.
    """
    half = dim // 2
    # RandomState's numbers will not change with NumPy's versions: trained networks rely on them.
    frequencies = scale * np.random.RandomState(0).standard_normal(half)
    angles = t.astype(jnp.float32)[:, None] * jnp.asarray(2 * np.pi * frequencies, jnp.float32)
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
    """Features of the time and two dense layers: (B,) -> (B, width).

    Attributes:
      features: number of features.
      width: of the result.
      features_of: (t, features) -> (B, features): `timestep_embedding` or `random_time_features`.
      zero: whether the last kernel is initialised to zero.
      kernel_init: of the kernels.
      dtype: compute type of the layers.
    """

    features: int
    width: int
    features_of: Callable[[Array, int], Array] = timestep_embedding
    zero: bool = False
    kernel_init: Initializer = nn.linear.default_kernel_init
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, t: Array) -> Array:
        h = self.features_of(t, self.features).astype(self.dtype)
        h = nn.Dense(self.width, kernel_init=self.kernel_init, dtype=self.dtype, name="in")(h)
        last = nn.initializers.zeros_init() if self.zero else self.kernel_init
        return nn.Dense(self.width, kernel_init=last, dtype=self.dtype, name="out")(nn.silu(h))


class ClassEmbedding(nn.Module):
    """A learned vector per class, and one for the null class: (B,) int -> (B, width).

    Labels 0..num_classes-1 are classes; a negative label is the null class, trained by label
    dropout and used by classifier-free guidance (Ho & Salimans 2022).
    """

    num_classes: int
    width: int
    embedding_init: Initializer = nn.initializers.normal(1.0)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, labels: Array) -> Array:
        rows = jnp.where(labels < 0, self.num_classes, labels)
        return nn.Embed(
            self.num_classes + 1,
            self.width,
            dtype=self.dtype,
            embedding_init=self.embedding_init,
            name="table",
        )(rows)
