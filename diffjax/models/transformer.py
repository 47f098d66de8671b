"""Transformer blocks over the pixels of a feature map, with cross-attention to a context."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.attention import Mixer, number_of_heads
from diffjax.models.blocks import Dense
from diffjax.models.norm import GroupNorm
from diffjax.models.ops import XLA, Ops
from diffjax.types import Array, Dtype


class Context(NamedTuple):
    """The context of cross-attention: tokens (B, L, D), mask (B, L) bool, True at valid tokens.

    Every row of the mask needs a True, since a softmax over no tokens is undefined. A mask of None
    is one of True.

    With `image`, tokens (B, M, D) of an image, there is an attention to them, too, with keys and
    values of its own, which is added `scale` times (Ye et al. 2023, equation 5).
    """

    tokens: Array
    mask: Array | None
    image: Array | None = None
    scale: Any = 1.0

    @property
    def of_scores(self) -> Array | None:
        """The mask of the scores (B, heads, queries, L): (B, 1, 1, L), or None."""
        return None if self.mask is None else self.mask[:, None, None, :]


class SpatialTransformer(nn.Module):
    """x + out(blocks(in(norm(x)))), each block self-attention, cross-attention and a gated MLP.

    Rombach et al. 2022, appendix E.2.1: each of the three is pre-norm and residual, and keys and
    values of the cross-attention are linear in the context,

        softmax(Q K^T / sqrt(d)) V,  Q = W_q x,  K = W_k context,  V = W_v context     (section 3.3)

    Attributes:
      depth: number of blocks.
      head_channels: channels per head; the number of heads is channels / head_channels.
      mix: of the self-attention, see `attention.SelfAttention`.
      expansion: width of the MLP's hidden layer over the channels.
      groups, eps: of the first normalisation, as in `GroupNorm`.
      dtype: compute type.
      ops: kernels of the normalisation, the linear maps and the attention to unmasked tokens.
    """

    depth: int = 1
    head_channels: int = 32
    mix: Mixer = jax.nn.dot_product_attention
    expansion: int = 4
    groups: int | None = None
    eps: float = 1e-5
    dtype: Dtype = jnp.float32
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: Array, context: Context | None) -> Array:
        """x: (B, H, W, C) -> the same shape; without a context there is no cross-attention.

        Raises:
          ValueError: channels that head_channels does not divide.
        """
        batch, height, width, channels = x.shape
        number_of_heads(channels, self.head_channels)
        common: dict[str, Any] = {"dtype": self.dtype, "ops": self.ops}
        h = GroupNorm(self.groups, self.eps, name="norm", **common)(x)
        h = h.reshape(batch, height * width, channels)
        h = Dense(channels, name="in", **common)(h)
        for i in range(self.depth):
            y = self._norm(f"norm{i}_self")(h)
            h = h + self._attend(y, y, self.mix, f"self{i}")
            if context is not None:
                mix = self.ops.attention
                if context.mask is not None:
                    mix = partial(jax.nn.dot_product_attention, mask=context.of_scores)
                y = self._norm(f"norm{i}_cross")(h)
                h = h + self._attend(y, context.tokens, mix, f"cross{i}", context, f"image{i}")
            y = self._norm(f"norm{i}_mlp")(h)
            wide = Dense(2 * self.expansion * channels, name=f"mlp{i}_in", **common)(y)
            value, gate = jnp.split(wide, 2, axis=-1)
            h = h + Dense(channels, name=f"mlp{i}_out", **common)(
                value * nn.gelu(gate, approximate=False)
            )
        # With a zero kernel the module starts as the identity.
        h = Dense(channels, zero=True, name="out", **common)(h)
        return x + h.reshape(x.shape)

    def _norm(self, name: str) -> nn.Module:
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)

    def _attend(
        self,
        x: Array,
        to: Array,
        mix: Mixer,
        name: str,
        context: Context | None = None,
        of_image: str = "",
    ) -> Array:
        """Multi-head attention of (B, L, C) to (B, M, D); only the output has a bias.

        With a context, also to its image.
        """
        batch, length, channels = x.shape
        heads = (-1, channels // self.head_channels, self.head_channels)

        def linear(y: Array, name: str) -> Array:
            h = Dense(channels, use_bias=False, dtype=self.dtype, ops=self.ops, name=name)(y)
            return h.reshape(batch, *heads)

        q = linear(x, f"{name}_q")
        mixed = mix(q, linear(to, f"{name}_k"), linear(to, f"{name}_v"))
        if context is not None and context.image is not None:
            k, v = (linear(context.image, f"{of_image}_{part}") for part in "kv")
            scale = jnp.asarray(context.scale, mixed.dtype)
            mixed = mixed + scale * self.ops.attention(q, k, v)
        mixed = mixed.reshape(batch, length, channels)
        return Dense(channels, dtype=self.dtype, ops=self.ops, name=f"{name}_out")(mixed)
