"""BERT's encoder (Devlin et al. 2019, "BERT: pre-training of deep bidirectional transformers for
language understanding"), and its weights from a Hugging Face folder."""

from __future__ import annotations

import os

import flax.linen as nn
import jax.numpy as jnp

from diffjax import arguments
from diffjax.conditioning.attention import SelfAttention, layer_norm, mean_over_mask
from diffjax.conditioning.hugging_face import (
    Pool,
    frozen_encoder,
    load_params,
    read_config,
    read_tokenizer,
)
from diffjax.conditioning.text_encoder import TextEncoder
from diffjax.files import expanded
from diffjax.types import Array


class Bert(nn.Module):
    """Learned positions, post-norm layers, exact GELU.

    Attributes:
      vocabulary: number of tokens.
      width: D, channels of a token.
      hidden: channels inside of the layers' MLPs.
      layers: number of layers.
      heads: number of heads, a divisor of width.
      positions: maximal number of tokens.
      types: number of segment types; all tokens here have the first.
      eps: added to variances.
    """

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    positions: int
    types: int = 2
    eps: float = 1e-12

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> Array:
        """ids (B, L) int, mask (B, L) bool -> tokens (B, L, D)."""
        length = ids.shape[1]
        h = nn.Embed(self.vocabulary, self.width, name="word")(ids)
        h += nn.Embed(self.positions, self.width, name="position")(jnp.arange(length))
        h += nn.Embed(self.types, self.width, name="type")(jnp.zeros(1, jnp.int32))
        h = layer_norm(self.eps, "norm")(h)
        for i in range(self.layers):
            h = BertLayer(self.hidden, self.heads, self.eps, name=f"layer_{i}")(h, mask)
        return h


class BertLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    hidden: int
    heads: int
    eps: float

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """x: (B, L, D), mask: (B, L) bool -> (B, L, D)."""
        width = x.shape[-1]
        attention = SelfAttention(self.heads, width // self.heads, name="attention")
        x = layer_norm(self.eps, "attention_norm")(x + attention(x, mask[:, None, None]))
        h = nn.gelu(nn.Dense(self.hidden, name="expand")(x), approximate=False)
        h = nn.Dense(width, name="contract")(h)
        return layer_norm(self.eps, "mlp_norm")(x + h)


def mean_pool(tokens: Array, ids: Array, mask: Array) -> Array:
    """The mean of the non-padding tokens: (B, L, D) -> (B, D)."""
    return mean_over_mask(tokens, mask)


def bert(
    *,
    folder: str | os.PathLike[str],
    length: int = 64,
    name: str | None = None,
    pool: Pool = mean_pool,
) -> TextEncoder:
    """A BERT from a Hugging Face folder with config.json, safetensors and tokenizer.json.

    Args:
      folder: of a model of type "bert"; weights may have the prefix "bert.".
      length: number of tokens that captions are padded or cut to, including [CLS] and [SEP].
      name: for logs; None takes the folder's.
      pool: computes `pooled` from the tokens.

    Raises:
      UserError: a folder that is missing, incomplete, corrupt or of another model, or a length
        beyond the model's positions.
    """
    folder = expanded(folder, name="folder")
    length = arguments.whole("length", length, least=1)
    config = read_config(folder, ["bert"])
    config.one_of("hidden_act", ["gelu"], "gelu")
    config.one_of("position_embedding_type", ["absolute"], "absolute")
    module = Bert(
        vocabulary=config.get("vocab_size", 30522),
        width=config.get("hidden_size", 768),
        hidden=config.get("intermediate_size", 3072),
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
        positions=config.get("max_position_embeddings", 512),
        types=config.get("type_vocab_size", 2),
        eps=config.get("layer_norm_eps", 1e-12),
    )
    config.check_heads(module.width, module.heads)
    return frozen_encoder(
        name=name or folder.resolve().name,
        module=module,
        params=load_params(module, folder, _module_names(module.layers), prefix="bert."),
        pool=pool,
        tokenizer=read_tokenizer(folder),
        length=length,
        longest=module.positions,
        config=config,
    )


def _module_names(layers: int) -> dict[str, list[str]]:
    names = {
        "word": ["embeddings.word_embeddings"],
        "position": ["embeddings.position_embeddings"],
        "type": ["embeddings.token_type_embeddings"],
        "norm": ["embeddings.LayerNorm"],
    }
    for i in range(layers):
        ours, theirs = f"layer_{i}", f"encoder.layer.{i}"
        names |= {
            f"{ours}/attention/query": [f"{theirs}.attention.self.query"],
            f"{ours}/attention/key": [f"{theirs}.attention.self.key"],
            f"{ours}/attention/value": [f"{theirs}.attention.self.value"],
            f"{ours}/attention/out": [f"{theirs}.attention.output.dense"],
            f"{ours}/attention_norm": [f"{theirs}.attention.output.LayerNorm"],
            f"{ours}/expand": [f"{theirs}.intermediate.dense"],
            f"{ours}/contract": [f"{theirs}.output.dense"],
            f"{ours}/mlp_norm": [f"{theirs}.output.LayerNorm"],
        }
    return names
