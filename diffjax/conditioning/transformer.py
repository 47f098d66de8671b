"""A small text network, trained from scratch together with the diffusion model."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffjax.conditioning.attention import SelfAttention, layer_norm, mean_over_mask, zero_padding
from diffjax.types import Array, Dtype


class TextTransformer(nn.Module):
    """A bidirectional pre-norm transformer with learned positions.

    Vaswani et al. 2017, with pre-normalisation (Xiong et al. 2020, "On layer normalization in the
    transformer architecture").

    Attributes:
      vocabulary: number of ids, `Vocabulary.size`.
      width: D, channels of a token.
      layers: number of layers.
      heads: number of heads, a divisor of width.
      length: maximal number of tokens.
      dtype: compute type.
    """

    vocabulary: int
    width: int = 128
    layers: int = 2
    heads: int = 4
    length: int = 16
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> tuple[Array, Array]:
        """Texts to features.

        Args:
          ids: (B, L) int, L up to `length`.
          mask: (B, L) bool, True at non-padding tokens; the result does not depend on padding.

        Returns:
          tokens (B, L, D), zero at padding, and pooled (B, D), their mean; both in `dtype`.
          Zeros for a text that is all padding.
        """
        length = ids.shape[1]
        if self.width % self.heads:
            raise ValueError(
                f"a text network of width {self.width} can't have {self.heads} heads: heads must "
                "divide width"
            )
        if length > self.length:
            raise ValueError(
                f"got texts of {length} tokens; this text network takes up to {self.length}: raise "
                "its length"
            )
        init = nn.initializers.normal(0.02)
        words = nn.Embed(
            self.vocabulary, self.width, dtype=self.dtype, embedding_init=init, name="word"
        )
        positions = self.param("position", init, (self.length, self.width))
        h = words(ids) + positions[:length].astype(self.dtype)
        for i in range(self.layers):
            layer = TransformerLayer(self.heads, dtype=self.dtype, name=f"layer_{i}")
            h = layer(h, mask)
        h = zero_padding(layer_norm(1e-6, "norm", self.dtype)(h), mask)
        return h, mean_over_mask(h, mask)


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with four times the channels inside."""

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """x: (B, L, D), mask: (B, L) bool -> (B, L, D)."""
        width = x.shape[-1]
        attention = SelfAttention(
            self.heads, width // self.heads, dtype=self.dtype, name="attention"
        )
        h = layer_norm(1e-6, "attention_norm", self.dtype)(x)
        x = x + attention(h, mask[:, None, None])
        h = layer_norm(1e-6, "mlp_norm", self.dtype)(x)
        h = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="expand")(h))
        return x + nn.Dense(width, dtype=self.dtype, name="contract")(h)
