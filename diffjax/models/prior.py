"""The network of a diffusion prior: a causal transformer from a text to an image embedding."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.models.checks import check_dtype, check_share, check_wholes
from diffjax.models.condition import Condition, Text
from diffjax.models.embeddings import ClassEmbedding, TimeEmbedding
from diffjax.models.remat import Policy
from diffjax.types import Array, Dtype

TIME_FEATURES = 128


class Prior(nn.Module):
    """A decoder-only transformer that predicts an embedding at its last token.

    Ramesh et al. 2022 (DALL-E 2), section 2.2: a causal mask over, in this order, the encodings of
    the text's tokens, the pooled encoding of the text, an embedding of the time (with that of the
    class, for a network with classes), the noised image embedding, and a learned query whose output
    is the prediction. Padding, and the tokens of a dropped text, are replaced by learned vectors.
    Layers are pre-norm, with learned positions.

    Attributes:
      width: channels of a token.
      layers: number of layers.
      head_channels: channels per attention head.
      dropout: rate after attention and MLP, if train = True.
      num_classes: 0 for a network without classes.
      text_width: features per text token; 0 for a network without text.
      text_encoder: (ids, mask) -> (tokens, pooled), trained with the network, for texts as ids;
        None for texts that are already encoded.
      out_channels: None for the input's.
      dtype: compute type; parameters stay float32.
      remat: which of the layers' results are kept for the backward pass; None keeps all.
    """

    width: int = 256
    layers: int = 6
    head_channels: int = 32
    dropout: float = 0.0
    num_classes: int = 0
    text_width: int = 0
    text_encoder: nn.Module | None = None
    out_channels: int | None = None
    dtype: Dtype = jnp.float32
    remat: Policy | None = None

    @nn.compact
    def __call__(
        self, x: Array, t: Array, cond: Condition | None = None, *, train: bool = False
    ) -> Array:
        """The prediction for noised embeddings.

        Args:
          x: (B, D) float embeddings.
          t: (B,) times, about 0..1000.
          cond: see `Condition`; None is treated as dropped.
          train: whether dropout is on, which needs a "dropout" key.

        Returns:
          (B, out_channels) float32.

        Raises:
          UserError: a field of another type or range.
          ValueError: x of another rank, a width that head_channels does not divide, or a condition
            that the network does not support.
        """
        self._check(x, cond)
        batch, dimensions = x.shape
        condition = cond if isinstance(cond, Condition) else Condition(label=cond)

        def linear(name: str) -> nn.Dense:
            return nn.Dense(self.width, dtype=self.dtype, name=name)

        time = TimeEmbedding(TIME_FEATURES, self.width, dtype=self.dtype, name="time")(t)
        if self.num_classes:
            label = jnp.full(batch, -1) if condition.label is None else condition.label
            classes = ClassEmbedding(self.num_classes, self.width, dtype=self.dtype, name="label")
            time = time + classes(label)
        noised = linear("image")(x)
        query = jnp.broadcast_to(self._vector("query"), (batch, self.width))
        parts = [*self._text(condition.text, batch), time, noised, query.astype(self.dtype)]
        h = jnp.concatenate([p if p.ndim == 3 else p[:, None] for p in parts], axis=1)
        h = h + self._vector("position", h.shape[1]).astype(self.dtype)
        seen = jnp.tri(h.shape[1], dtype=bool)[None, None]
        layer = _Layer if self.remat is None else nn.remat(
            _Layer, static_argnums=(3,), policy=self.remat
        )  # fmt: skip
        for i in range(self.layers):
            h = layer(self.head_channels, self.dropout, self.dtype, name=f"layer_{i}")(
                h, seen, train
            )
        last = _norm("norm", self.dtype)(h[:, -1])
        head = nn.Dense(
            self.out_channels or dimensions, kernel_init=nn.initializers.zeros, dtype=self.dtype,
            name="head",
        )  # fmt: skip
        return head(last).astype(jnp.float32)

    def _text(self, text: Text | None, batch: int) -> list[Array]:
        """The text's tokens (B, L, width) and its pooled vector (B, width); [] without text."""
        if not self.text_width:
            return []
        if text is None:
            shape = (batch, 1) if self.text_encoder else (batch, 1, self.text_width)
            nothing = jnp.zeros(shape, int if self.text_encoder else float)
            text = Text(nothing, jnp.zeros((batch, 1), bool))
        tokens, mask, pooled = text
        if self.text_encoder is not None:
            tokens, pooled = self.text_encoder(tokens, mask)
        if tokens.shape[-1] != self.text_width:
            raise ValueError(
                f"text of {tokens.shape[-1]} features a token was given to a prior of text_width "
                f"{self.text_width}: use the encoder that it was made for"
            )
        if pooled is None:
            pooled = jnp.zeros((batch, self.text_width))

        def projected(name: str, x: Array) -> Array:
            return nn.Dense(self.width, dtype=self.dtype, name=name)(x.astype(self.dtype))

        length = mask.shape[1]
        absent = self._vector("no_token", length).astype(self.dtype)
        encodings = jnp.where(mask[..., None], projected("tokens", tokens), absent)
        absent = self._vector("no_text").astype(self.dtype)
        whole = jnp.where(mask.any(1, keepdims=True), projected("pooled", pooled), absent)
        return [encodings, whole]

    def _vector(self, name: str, count: int | None = None) -> Array:
        shape = (self.width,) if count is None else (count, self.width)
        return self.param(name, nn.initializers.normal(0.02), shape)

    def _check(self, x: Array, cond: Any) -> None:
        check_wholes(
            self,
            {"width": 1, "layers": 1, "head_channels": 1, "num_classes": 0, "text_width": 0},
        )
        check_share(self, "dropout")
        check_dtype(self)
        if x.ndim != 2:
            raise ValueError(f"a prior takes embeddings (B, D), not {x.shape}")
        if self.width % self.head_channels:
            raise ValueError(
                f"a prior of width {self.width} can't have heads of {self.head_channels}: "
                "head_channels must divide width"
            )
        if not isinstance(cond, Condition):
            return
        has = {"label": self.num_classes, "text": self.text_width}
        for name, part in zip(cond._fields, cond, strict=True):
            if part is not None and not has.get(name):
                raise ValueError(f"a {name} was given to a prior that does not support it")


class _Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with four times the channels inside."""

    head_channels: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, seen: Array, train: bool) -> Array:
        """x: (B, L, width), seen: (1, 1, L, L) bool -> (B, L, width)."""
        batch, length, width = x.shape
        drop = nn.Dropout(self.dropout, deterministic=not train)
        h = _norm("attention_norm", self.dtype)(x)
        qkv = nn.Dense(3 * width, use_bias=False, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, -1, self.head_channels), 2, 0)
        h = jax.nn.dot_product_attention(q, k, v, mask=seen).reshape(x.shape)
        x = x + drop(nn.Dense(width, dtype=self.dtype, name="out")(h))
        h = _norm("mlp_norm", self.dtype)(x)
        h = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="expand")(h))
        return x + drop(nn.Dense(width, dtype=self.dtype, name="contract")(h))


def _norm(name: str, dtype: Dtype) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=name)
