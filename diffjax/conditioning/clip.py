"""CLIP's text model (Radford et al. 2021, "Learning transferable visual models from natural
language supervision"), and its weights from a Hugging Face folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from diffjax import arguments
from diffjax.conditioning.attention import SelfAttention, layer_norm
from diffjax.conditioning.hugging_face import (
    Config,
    Pool,
    frozen_encoder,
    load_params,
    read_config,
    read_tokenizer,
)
from diffjax.conditioning.model_folder import read_json
from diffjax.conditioning.text_encoder import TextEncoder
from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.types import Array

BEGIN = "<|startoftext|>"
END = "<|endoftext|>"

# eos_token_id in old configs, where it is not the end token's id.
LEGACY_END = 2


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * nn.sigmoid(1.702 * x)


exact_gelu = functools.partial(nn.gelu, approximate=False)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


class Clip(nn.Module):
    """A causal transformer with learned positions and pre-norm layers.

    Attributes:
      vocabulary: number of tokens.
      width: D, channels of a token.
      hidden: channels inside of the layers' MLPs.
      layers: number of layers.
      heads: number of heads, a divisor of width.
      positions: maximal number of tokens.
      activation: of the MLPs.
      eps: added to variances.
    """

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    positions: int
    activation: Callable[[Array], Array] = quick_gelu
    eps: float = 1e-5

    def __call__(self, ids: Array, mask: Array) -> Array:
        """ids (B, L) int, mask (B, L) bool -> tokens (B, L, D)."""
        return self.states(ids, mask)[1]

    @nn.compact
    def states(self, ids: Array, mask: Array) -> tuple[list[Array], Array]:
        """The tokens after each layer, and those of the last one after the final normalisation.

        ids (B, L) int, mask (B, L) bool -> (B, L, D) each.
        """
        length = ids.shape[1]
        after: list[Array] = []
        h = nn.Embed(self.vocabulary, self.width, name="word")(ids)
        h += nn.Embed(self.positions, self.width, name="position")(jnp.arange(length))
        seen = jnp.tri(length, dtype=bool) & mask[:, None, None]
        for i in range(self.layers):
            layer = ClipLayer(self.hidden, self.heads, self.activation, self.eps, name=f"layer_{i}")
            h = layer(h, seen)
            after.append(h)
        return after, layer_norm(self.eps, "norm")(h)


class ClipLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    hidden: int
    heads: int
    activation: Callable[[Array], Array]
    eps: float

    @nn.compact
    def __call__(self, x: Array, seen: Array) -> Array:
        """x: (B, L, D), seen: (B, 1, L, L) bool -> (B, L, D)."""
        width = x.shape[-1]
        attention = SelfAttention(self.heads, width // self.heads, name="attention")
        x = x + attention(layer_norm(self.eps, "attention_norm")(x), seen)
        h = layer_norm(self.eps, "mlp_norm")(x)
        h = self.activation(nn.Dense(self.hidden, name="expand")(h))
        return x + nn.Dense(width, name="contract")(h)


def _state_at(tokens: Array, place: Array, mask: Array) -> Array:
    state = jnp.take_along_axis(tokens, place[:, None, None], axis=1)[:, 0]
    return jnp.where(mask.any(-1, keepdims=True), state, 0)


def highest_id_pool(tokens: Array, ids: Array, mask: Array) -> Array:
    """The state at the highest id, which is the end token's in CLIP's vocabulary.

    (B, L, D), (B, L), (B, L) -> (B, D); zero for a text that is all padding.
    """
    return _state_at(tokens, jnp.argmax(jnp.where(mask, ids, -1), axis=-1), mask)


def end_pool(end: int) -> Pool:
    """The state at the first token equal to `end`, or at token 0 if there is none."""

    def pool(tokens: Array, ids: Array, mask: Array) -> Array:
        return _state_at(tokens, jnp.argmax((ids == end) & mask, axis=-1), mask)

    return pool


def clip(*, folder: str | os.PathLike[str], length: int = 77) -> TextEncoder:
    """CLIP's text model from a Hugging Face folder.

    `tokens` are the states after the last layer norm, `pooled` the one at the end token, before
    CLIP's projection. The folder's tokenizer is tokenizer.json, or vocab.json and merges.txt.

    Args:
      folder: of a model of type "clip_text_model" or "clip"; of the latter only the text model's
        tensors are read.
      length: number of tokens that captions are padded or cut to, including the begin and end
        tokens.

    Raises:
      UserError: a folder that is missing, incomplete, corrupt or of another model, or a length
        beyond the model's positions.
    """
    folder = expanded(folder, name="folder")
    length = arguments.whole("length", length)
    config = read_config(folder, ["clip_text_model", "clip"])
    if config.values["model_type"] == "clip":
        config = config.part("text_config")
    module = clip_of(config)
    return frozen_encoder(
        name=folder.resolve().name,
        module=module,
        params=load_params(module, folder, module_names(module.layers), prefix="text_model."),
        pool=pool_of(config),
        tokenizer=clip_tokenizer(folder),
        length=length,
        longest=module.positions,
        config=config,
    )


def clip_of(config: Config) -> Clip:
    """The network of a text model's config.

    Raises:
      UserError: a field of another type, or an activation that is not supported.
    """
    module = Clip(
        vocabulary=config.get("vocab_size", 49408),
        width=config.get("hidden_size", 512),
        hidden=config.get("intermediate_size", 2048),
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 8),
        positions=config.get("max_position_embeddings", 77),
        activation=ACTIVATIONS[config.one_of("hidden_act", list(ACTIVATIONS), "quick_gelu")],
        eps=config.get("layer_norm_eps", 1e-5),
    )
    config.check_heads(module.width, module.heads)
    return module


def pool_of(config: Config) -> Pool:
    """The rule by which transformers finds the end token of a text model's config."""
    end = config.get("eos_token_id", 49407)
    return highest_id_pool if end == LEGACY_END else end_pool(end)


def clip_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json or, without one, a tokenizer from vocab.json and merges.txt.

    Raises:
      UserError: neither exists, or a file cannot be read.
    """
    if (folder / "tokenizer.json").is_file() or not (folder / "vocab.json").is_file():
        return read_tokenizer(folder)
    vocabulary = read_json(folder / "vocab.json")
    missing = [token for token in (BEGIN, END) if not isinstance(vocabulary.get(token), int)]
    if missing:
        raise UserError(
            f"found no {missing[0]} in {folder / 'vocab.json'}; expected CLIP's vocabulary; "
            "download the file again"
        )
    merges = folder / "merges.txt"
    try:
        lines = merges.read_text(encoding="utf-8").splitlines()
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        model = models.BPE(
            vocabulary,
            [(first, second) for first, second in pairs],
            unk_token=END,
            end_of_word_suffix="</w>",
        )
    except Exception as error:  # the Rust library raises plain Exception
        raise UserError(
            f"cannot make a tokenizer from vocab.json and merges.txt in {folder} "
            f"({type(error).__name__}); expected CLIP's; download both again"
        ) from error
    tokenizer = with_words(Tokenizer(model))
    begin, end = ((token, vocabulary[token]) for token in (BEGIN, END))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[begin, end]
    )
    tokenizer.add_special_tokens([BEGIN, END])
    return tokenizer


def with_words(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with CLIP's normalisation of texts and division into words."""
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    # Contractions, words, single digits, runs of symbols; then bytes, so that nothing is unknown.
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def layer_names(layers: int) -> dict[str, list[str]]:
    """Paths of the layers' submodules -> their names in the files."""
    names: dict[str, list[str]] = {}
    for i in range(layers):
        ours, theirs = f"layer_{i}", f"encoder.layers.{i}"
        names |= {
            f"{ours}/attention/query": [f"{theirs}.self_attn.q_proj"],
            f"{ours}/attention/key": [f"{theirs}.self_attn.k_proj"],
            f"{ours}/attention/value": [f"{theirs}.self_attn.v_proj"],
            f"{ours}/attention/out": [f"{theirs}.self_attn.out_proj"],
            f"{ours}/attention_norm": [f"{theirs}.layer_norm1"],
            f"{ours}/expand": [f"{theirs}.mlp.fc1"],
            f"{ours}/contract": [f"{theirs}.mlp.fc2"],
            f"{ours}/mlp_norm": [f"{theirs}.layer_norm2"],
        }
    return names


def module_names(layers: int) -> dict[str, list[str]]:
    """Paths of all submodules -> their names in the files, without a prefix."""
    return {
        "word": ["embeddings.token_embedding"],
        "position": ["embeddings.position_embedding"],
        "norm": ["final_layer_norm"],
        **layer_names(layers),
    }
