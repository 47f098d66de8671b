"""A custom Linen network: a small vision transformer with adaLN, optionally class-conditional.

`num_classes` and `out_channels` are not set in the config: diffjax derives them from the data and
the parametrisation.
"""

import flax.linen as nn
import jax.numpy as jnp


def modulate(h, embedding, name):
    """LayerNorm scaled and shifted by the embedding (Peebles & Xie 2023, adaLN)."""
    scale, shift = jnp.split(nn.Dense(2 * h.shape[-1], name=name)(embedding)[:, None], 2, axis=-1)
    return nn.LayerNorm(use_bias=False, use_scale=False)(h) * (1 + scale) + shift


class Transformer(nn.Module):
    depth: int = 2
    width: int = 32
    heads: int = 4
    patch: int = 2
    num_classes: int = 0
    out_channels: int = 1

    @nn.compact
    def __call__(self, x, t, cond, *, train=False):
        batch, height, width, _ = x.shape
        p, rows, columns = self.patch, height // self.patch, width // self.patch
        h = nn.Conv(self.width, (p, p), strides=p)(x).reshape(batch, rows * columns, self.width)
        h += self.param("places", nn.initializers.normal(0.02), (rows * columns, self.width))
        frequencies = jnp.exp(-jnp.arange(16) / 2)
        angles = t[:, None] * frequencies
        embedding = nn.Dense(self.width)(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1))
        if cond is not None and cond.label is not None:  # -1, no class, is the last row
            embedding += nn.Embed(self.num_classes + 1, self.width)(
                cond.label % (self.num_classes + 1)
            )
        for i in range(self.depth):
            normed = modulate(h, embedding, f"attention_norm_{i}")
            h += nn.MultiHeadDotProductAttention(self.heads)(normed, normed)
            hidden = nn.Dense(4 * self.width)(modulate(h, embedding, f"mlp_norm_{i}"))
            h += nn.Dropout(0.1)(nn.Dense(self.width)(nn.gelu(hidden)), deterministic=not train)
        h = nn.Dense(p * p * self.out_channels, kernel_init=nn.initializers.zeros)(h)
        h = h.reshape(batch, rows, columns, p, p, self.out_channels).transpose(0, 1, 3, 2, 4, 5)
        return h.reshape(batch, height, width, self.out_channels)
