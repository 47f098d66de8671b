"""Self-attention over the pixels of a feature map, pre-norm and residual."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.blocks import Dense
from diffjax.models.norm import GroupNorm
from diffjax.models.ops import XLA, Ops
from diffjax.types import Array, Dtype

# (queries, keys, values), each (B, pixels, heads, D) -> (B, pixels, heads, D).
Mixer = Callable[[Array, Array, Array], Array]


def linear_attention(q: Array, k: Array, v: Array) -> Array:
    """Attention whose cost is linear in the number of pixels.

    Shen et al. 2021, "Efficient attention: attention with linear complexities", section 3.
    Queries are normalised over features and keys over pixels, so that q (k^T v) replaces (q k^T) v
    and no pixels x pixels matrix is computed.

    Args:
      q, k, v: (B, L, heads, D).

    Returns:
      (B, L, heads, D).
    """
    q = jax.nn.softmax(q, axis=-1)
    k = jax.nn.softmax(k, axis=1)
    context = jnp.einsum("blhd,blhe->bhde", k, v)
    return jnp.einsum("blhd,bhde->blhe", q, context)


def no_attention(q: Array, k: Array, v: Array) -> Array:
    """Every pixel attends only to itself: returns v.

    Perturbed-attention guidance replaces a layer's attention by this (Ahn et al. 2024,
    "Self-rectifying diffusion sampling with perturbed-attention guidance", section 4.2).
    """
    return v


def number_of_heads(channels: int, head_channels: int) -> int:
    """channels / head_channels.

    Raises:
      ValueError: it is not whole.
    """
    if channels % head_channels:
        raise ValueError(
            f"attention over {channels} channels can't have heads of {head_channels}: "
            "head_channels must divide channels"
        )
    return channels // head_channels


def check_perturbed(perturbed: Sequence[str], attending: Sequence[str]) -> None:
    """Raises ValueError for perturbed blocks that are not among those with attention."""
    missing = sorted(set(perturbed) - set(attending))
    if missing:
        raise ValueError(f"block {missing[0]!r} has no attention: expected one of {attending}")


def attention_blocks(
    height: int,
    *,
    patch: int,
    levels: int,
    blocks: int,
    resolutions: Sequence[int],
    resample_first: bool = False,
) -> tuple[str, ...]:
    """The names of a U-Net's blocks with attention: "down1_0" (level, block), "middle_0", "up1_0".

    Args:
      height: of the images.
      patch: patch side of the stem, by which the first level's maps are smaller.
      levels: number of levels, each at half the size of the one before, rounded up.
      blocks: residual blocks per level; one more in the decoder.
      resolutions: heights of the maps with attention.
      resample_first: whether a level's resolution is halved before its blocks.

    Raises:
      ValueError: a resolution that no level has.
    """
    heights = [-(-height // patch)]
    for _ in range(levels):
        heights.append(-(-heights[-1] // 2))
    heights = heights[1:] if resample_first else heights[:-1]
    missing = set(resolutions) - set(heights)
    if missing:
        raise ValueError(
            f"attention_resolutions {sorted(missing)} are not among this network's map "
            f"heights {heights} for images {height} high"
        )
    attending = [i for i, h in enumerate(heights) if h in resolutions]
    down = [f"down{level}_{i}" for level in attending for i in range(blocks)]
    up = [f"up{level}_{i}" for level in reversed(attending) for i in range(blocks + 1)]
    return (*down, "middle_0", *up)


class SelfAttention(nn.Module):
    """x + out(mix(q, k, v)) of the normalised x, with multi-head q, k, v.

    Attributes:
      head_channels: channels per head; the number of heads is channels / head_channels.
      mix: `jax.nn.dot_product_attention` (Vaswani et al. 2017) or `linear_attention`.
      groups, eps: of the normalisation, as in `GroupNorm`.
      dtype: compute type.
      ops: kernels of the normalisation and the linear maps.
    """

    head_channels: int = 32
    mix: Mixer = jax.nn.dot_product_attention
    groups: int | None = None
    eps: float = 1e-5
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: (B, H, W, C) -> the same shape."""
        batch, height, width, channels = x.shape
        heads = number_of_heads(channels, self.head_channels)
        h = GroupNorm(self.groups, self.eps, dtype=self.dtype, ops=self.ops, name="norm")(x)
        h = h.reshape(batch, height * width, channels)
        qkv = Dense(3 * channels, dtype=self.dtype, ops=self.ops, name="qkv")(h)
        q, k, v = jnp.split(qkv.reshape(batch, -1, 3 * heads, self.head_channels), 3, axis=2)
        h = self.mix(q, k, v).reshape(batch, height, width, channels)
        # With a zero kernel the block starts as the identity, as in DDPM and ADM.
        return x + Dense(channels, zero=True, dtype=self.dtype, ops=self.ops, name="out")(h)
