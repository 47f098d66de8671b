"""Group normalisation, written for speed."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.types import Array, Dtype

MAX_GROUPS = 32


class GroupNorm(nn.Module):
    """Group normalisation over (H, W, channels of a group) (Wu & He 2018).

    Sums per channel first, then per group, then one multiply-add over the image: on a CPU half the
    time of normalising a (B, H, W, groups, channels / groups) view. Statistics are float32.

    Attributes:
      groups: None takes the largest power of two up to 32 that divides the channels.
      eps: added to the variance; 1e-5 as in guided-diffusion.
      dtype: the output's type.
    """

    groups: int | None = None
    eps: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: (B, ..., C) -> the same shape."""
        channels = x.shape[-1]
        groups = math.gcd(channels, MAX_GROUPS) if self.groups is None else self.groups
        if channels % groups:
            raise ValueError(f"{channels} channels don't divide into {groups} groups")
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))

        space = tuple(range(1, x.ndim - 1))
        wide = x.astype(jnp.float32)

        # (B, 1.., C) -> mean over a group, repeated for its channels.
        def group_mean(per_channel: Array) -> Array:
            grouped = per_channel.reshape(per_channel.shape[0], groups, channels // groups)
            return jnp.repeat(grouped.mean(-1), channels // groups, axis=-1)

        mean = group_mean(wide.mean(space))
        variance = group_mean(jnp.square(wide).mean(space)) - jnp.square(mean)
        multiplier = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + self.eps) * scale
        offset = bias - mean * multiplier
        shape = (x.shape[0],) + (1,) * len(space) + (channels,)
        return (wide * multiplier.reshape(shape) + offset.reshape(shape)).astype(self.dtype)
