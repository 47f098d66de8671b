"""Group normalisation, written for speed."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.types import Array, Dtype

MAX_GROUPS = 32
MIN_CHANNELS = 4  # DDPM's 128 channels in 32 groups; one a group would erase each map's mean


def default_groups(channels: int) -> int:
    """The most groups, a power of two up to 32, that share the channels evenly, 4 or more each.

    >>> [default_groups(c) for c in (8, 32, 96, 128, 256)]
    [2, 8, 16, 32, 32]
    """
    groups = math.gcd(channels, MAX_GROUPS)
    while groups > 1 and channels // groups < MIN_CHANNELS:
        groups //= 2
    return groups


class GroupNorm(nn.Module):
    """Group normalisation over (H, W, channels of a group) (Wu & He 2018).

    Sums per channel first, then per group, then one multiply-add over the image: on a CPU half the
    time of normalising a (B, H, W, groups, channels / groups) view. Statistics are float32.

    Attributes:
      groups: None takes `default_groups`.
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
        groups = default_groups(channels) if self.groups is None else self.groups
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
