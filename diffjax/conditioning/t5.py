"""T5's encoder (Raffel et al. 2020, "Exploring the limits of transfer learning with a unified
text-to-text transformer"), versions 1.0 and 1.1, and its weights from a Hugging Face folder."""

from __future__ import annotations

import math
import os

import flax.linen as nn
import numpy as np
import numpy.typing as npt

from diffjax import arguments
from diffjax.conditioning.attention import SelfAttention
from diffjax.conditioning.bert import mean_pool
from diffjax.conditioning.hugging_face import (
    frozen_encoder,
    load_params,
    read_config,
    read_tokenizer,
)
from diffjax.conditioning.text_encoder import TextEncoder
from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.types import Array


def relative_buckets(length: int, *, buckets: int, max_distance: int) -> npt.NDArray[np.int32]:
    """The index of T5's position bias for each pair of positions (Raffel et al. 2020, section 2.1).

    Half of the buckets are for keys after the query, half for the others. The first half of each
    has one bucket per distance; the rest divide the distances up to `max_distance`
    logarithmically, and the last one includes all larger distances.

    Args:
      length: L.
      buckets: number of buckets, a multiple of 4.
      max_distance: distances from here on share one bucket.

    Returns:
      (L, L): query position, key position.
    """
    positions = np.arange(length)
    offset = positions[None] - positions[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # float32 as in the original code: rounding matters at bucket boundaries.
    steps = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = exact + (steps / np.float32(math.log(max_distance / exact)) * (half - exact)).astype(int)
    bucket = np.where(distance < exact, distance, np.minimum(far, half - 1))
    return (bucket + half * (offset > 0)).astype(np.int32)


class T5(nn.Module):
    """Relative positions in one table for all layers, RMS norms, no biases, unscaled attention.

    Attributes:
      vocabulary: number of tokens.
      width: D, channels of a token.
      hidden: channels inside of the layers' MLPs.
      layers: number of layers.
      heads: number of heads.
      head_width: channels per head.
      gated: whether the MLPs are gated by a GELU (version 1.1) or plain ReLU (1.0).
      buckets: see `relative_buckets`.
      max_distance: see `relative_buckets`.
      eps: added to mean squares.
    """

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    head_width: int
    gated: bool
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> Array:
        """ids (B, L) int, mask (B, L) bool -> tokens (B, L, D)."""
        h = nn.Embed(self.vocabulary, self.width, name="word")(ids)
        pairs = relative_buckets(ids.shape[1], buckets=self.buckets, max_distance=self.max_distance)
        bias = nn.Embed(self.buckets, self.heads, name="relative")(pairs).transpose(2, 0, 1)[None]
        for i in range(self.layers):
            layer = T5Layer(
                self.hidden, self.heads, self.head_width, self.gated, self.eps, name=f"layer_{i}"
            )
            h = layer(h, mask, bias)
        return nn.RMSNorm(self.eps, name="norm")(h)


class T5Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    hidden: int
    heads: int
    head_width: int
    gated: bool
    eps: float

    @nn.compact
    def __call__(self, x: Array, mask: Array, bias: Array) -> Array:
        """x: (B, L, D), mask: (B, L) bool, bias: (1, heads, L, L) -> (B, L, D)."""
        attention = SelfAttention(
            self.heads, self.head_width, use_bias=False, scale=1.0, name="attention"
        )
        h = nn.RMSNorm(self.eps, name="attention_norm")(x)
        x = x + attention(h, mask[:, None, None], bias)
        h = nn.RMSNorm(self.eps, name="mlp_norm")(x)
        expanded = nn.Dense(self.hidden, use_bias=False, name="expand")(h)
        if self.gated:
            # Shazeer 2020, "GLU variants improve transformer", with GELU's tanh form.
            gate = nn.Dense(self.hidden, use_bias=False, name="gate")(h)
            h = nn.gelu(gate, approximate=True) * expanded
        else:
            h = nn.relu(expanded)
        return x + nn.Dense(x.shape[-1], use_bias=False, name="contract")(h)


def t5(*, folder: str | os.PathLike[str], length: int = 64) -> TextEncoder:
    """T5's encoder from a Hugging Face folder with config.json, safetensors and tokenizer.json.

    pooled is the mean over the caption's tokens, including </s>. Only the encoder's tensors are
    read.

    Args:
      folder: of a model of type "t5", version 1.0 ("relu") or 1.1 ("gated-gelu").
      length: number of tokens that captions are padded or cut to, including </s>.

    Raises:
      UserError: a folder that is missing, incomplete, corrupt or of another model, or a length
        below 2.
    """
    folder = expanded(folder, name="folder")
    length = arguments.whole("length", length, least=1)
    config = read_config(folder, ["t5"])
    gated = config.one_of("feed_forward_proj", ["relu", "gated-gelu"], "relu") == "gated-gelu"
    buckets = config.get("relative_attention_num_buckets", 32)
    max_distance = config.get("relative_attention_max_distance", 128)
    if buckets < 4 or buckets % 4 or max_distance <= buckets // 4:
        raise UserError(
            f"found {buckets} relative_attention buckets up to distance {max_distance} in "
            f"{config.path}; expected a multiple of 4, and a distance beyond a quarter of it; "
            "correct the file or download it again"
        )
    module = T5(
        vocabulary=config.get("vocab_size", 32128),
        width=config.get("d_model", 512),
        hidden=config.get("d_ff", 2048),
        layers=config.get("num_layers", 6),
        heads=config.get("num_heads", 8),
        head_width=config.get("d_kv", 64),
        gated=gated,
        buckets=buckets,
        max_distance=max_distance,
        eps=config.get("layer_norm_epsilon", 1e-6),
    )
    return frozen_encoder(
        name=folder.resolve().name,
        module=module,
        params=load_params(module, folder, _module_names(module.layers, gated)),
        pool=mean_pool,
        tokenizer=read_tokenizer(folder),
        length=length,
        longest=None,
        config=config,
    )


def _module_names(layers: int, gated: bool) -> dict[str, list[str]]:
    # The embedding is tied, and files have either name.
    names = {
        "word": ["shared", "encoder.embed_tokens"],
        "relative": ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias"],
        "norm": ["encoder.final_layer_norm"],
    }
    expand, gate = ("wi_1", "wi_0") if gated else ("wi", None)
    for i in range(layers):
        ours, theirs = f"layer_{i}", f"encoder.block.{i}.layer"
        names |= {
            f"{ours}/attention/query": [f"{theirs}.0.SelfAttention.q"],
            f"{ours}/attention/key": [f"{theirs}.0.SelfAttention.k"],
            f"{ours}/attention/value": [f"{theirs}.0.SelfAttention.v"],
            f"{ours}/attention/out": [f"{theirs}.0.SelfAttention.o"],
            f"{ours}/attention_norm": [f"{theirs}.0.layer_norm"],
            f"{ours}/expand": [f"{theirs}.1.DenseReluDense.{expand}"],
            f"{ours}/contract": [f"{theirs}.1.DenseReluDense.wo"],
            f"{ours}/mlp_norm": [f"{theirs}.1.layer_norm"],
        }
        if gate:
            names[f"{ours}/gate"] = [f"{theirs}.1.DenseReluDense.{gate}"]
    return names
