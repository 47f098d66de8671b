"""Parts shared by the text networks: self-attention between tokens, means without padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.types import Array, Dtype


def zero_padding(tokens: Array, mask: Array) -> Array:
    """tokens (B, L, D) with zeros where mask (B, L) is False."""
    return jnp.where(mask[..., None], tokens, 0)


def mean_over_mask(tokens: Array, mask: Array) -> Array:
    """The mean of the non-padding tokens: (B, L, D), (B, L) bool -> (B, D).

    Zero for a text that is all padding.

    >>> tokens = jnp.array([[[1.0], [3.0], [50.0]], [[7.0], [8.0], [9.0]]])
    >>> mask = jnp.array([[True, True, False], [False, False, False]])
    >>> mean_over_mask(tokens, mask).tolist()
    [[2.0], [0.0]]
    """
    count = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    return zero_padding(tokens, mask).sum(-2) / count.astype(tokens.dtype)


def unit_mean_over_mask(tokens: Array, mask: Array) -> Array:
    """`mean_over_mask` scaled to length 1, as sentence-transformers' Normalize does."""
    mean = mean_over_mask(tokens, mask)
    # Bounded away from zero, where the gradient of the square root diverges.
    squares = jnp.square(mean).sum(-1, keepdims=True)
    return mean * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def layer_norm(eps: float, name: str, dtype: Dtype = jnp.float32) -> nn.LayerNorm:
    """Layer normalisation with the variance about the mean.

    Flax's default, the mean square minus the squared mean, loses precision if a channel is much
    larger than the others, as in CLIP.
    """
    return nn.LayerNorm(eps, use_fast_variance=False, dtype=dtype, name=name)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2), without a residual.

    Attributes:
      heads: number of heads.
      head_width: channels per head.
      use_bias: whether the four linear maps have a bias.
      scale: factor of q k^T; None takes 1 / sqrt(head_width).
      dtype: compute type; the softmax is float32.
    """

    heads: int
    head_width: int
    use_bias: bool = True
    scale: float | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, bias: Array | None = None) -> Array:
        """Mixes tokens.

        Args:
          x: (B, L, D).
          mask: (B, 1, 1 or L, L) bool, False where a query (third axis) must not attend to a key
            (fourth). A query with no True attends to all keys equally, without NaN.
          bias: (1, heads, L, L) added to the scaled q k^T.

        Returns:
          (B, L, D).
        """
        batch, length, width = x.shape
        inner = self.heads * self.head_width

        def split(name: str) -> Array:
            projection = nn.Dense(inner, use_bias=self.use_bias, dtype=self.dtype, name=name)
            return projection(x).reshape(batch, length, self.heads, self.head_width)

        h = jax.nn.dot_product_attention(
            split("query"), split("key"), split("value"), bias=bias, mask=mask, scale=self.scale
        ).reshape(batch, length, inner)
        return nn.Dense(width, use_bias=self.use_bias, dtype=self.dtype, name="out")(h)
