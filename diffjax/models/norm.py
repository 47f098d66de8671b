"""Group normalisation as a module."""

import math

import flax.linen as nn
import jax.numpy as jnp

from diffjax.models.ops import XLA, Ops
from diffjax.types import Array, Dtype

MAX_GROUPS = 32
MIN_CHANNELS = 4  # as in DDPM, 128 channels in 32 groups; with 1 each channel's mean would be lost


def default_groups(channels: int) -> int:
    """The largest divisor of channels, a power of two up to 32, with 4 or more channels per group.

    >>> [default_groups(c) for c in (8, 32, 96, 128, 256)]
    [2, 8, 16, 32, 32]
    """
    groups = math.gcd(channels, MAX_GROUPS)
    while groups > 1 and channels // groups < MIN_CHANNELS:
        groups //= 2
    return groups


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018), optionally with modulation and SiLU.

    Attributes:
      groups: None takes `default_groups`.
      eps: added to the variance; 1e-5 as in guided-diffusion.
      silu: whether SiLU is applied to the result.
      dtype: the output's type; statistics and modulation are float32, or float64 if it is.
      ops: its kernel implementation.
    """

    groups: int | None = None
    eps: float = 1e-5
    silu: bool = False
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, modulation: tuple[Array, Array] | None = None) -> Array:
        """Normalises, scales and shifts.

        Args:
          x: (B, ..., C).
          modulation: (scale, shift), each (B, C): the result is multiplied by 1 + scale and shift
            is added, before SiLU (ADM; Dhariwal & Nichol 2021, section 3).

        Returns:
          x's shape, in `dtype`.
        """
        channels = x.shape[-1]
        groups = default_groups(channels) if self.groups is None else self.groups
        if channels % groups:
            raise ValueError(f"{channels} channels can't be divided into {groups} groups")
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        shift = self.param("bias", nn.initializers.zeros_init(), (channels,))
        if modulation is None:
            shape = (x.shape[0], channels)
            scale, shift = jnp.broadcast_to(scale, shape), jnp.broadcast_to(shift, shape)
        else:
            wide = jnp.promote_types(self.dtype, jnp.float32)
            more, then = (m.astype(wide) for m in modulation)
            scale, shift = scale * (1 + more), shift * (1 + more) + then
        return self.ops.group_norm(
            x.astype(self.dtype), scale, shift, groups=groups, eps=self.eps, silu=self.silu
        )
