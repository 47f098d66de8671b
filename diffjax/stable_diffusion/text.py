"""The text encoders of a folder: CLIP-L, OpenCLIP-H and OpenCLIP-bigG.

Stable Diffusion 1 and 2 attend to the last states after the final normalisation, and have no vector
of the whole text. OpenCLIP-H, of which Stable Diffusion 2 takes the last but one layer, is stored
without its last layer. SDXL attends to the last but one layer of two encoders, without that
normalisation, and is given the second one's projected state at the end token (Podell et al. 2023,
section 2.1).
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.conditioning.clip import (
    END,
    Clip,
    clip_of,
    clip_tokenizer,
    module_names,
    pool_of,
)
from diffjax.conditioning.conditions import Texts
from diffjax.conditioning.hugging_face import TEXT_INPUTS, Config, Pool, tokenise_with
from diffjax.conditioning.model_folder import read_json
from diffjax.errors import UserError
from diffjax.models.condition import Text
from diffjax.stable_diffusion import names, sources, weights
from diffjax.types import Array, Dtype

STEM = "model"


class Encoder(NamedTuple):
    """A text encoder without its weights.

    Attributes:
      module: the network.
      pool: the state at the end token.
      projection: width of the projected one; 0 for none.
      penultimate: whether the tokens are those of the last but one layer.
    """

    module: Clip
    pool: Pool
    projection: int
    penultimate: bool

    def shapes(self) -> Any:
        """The parameters with jax.ShapeDtypeStruct for arrays."""
        made: Any = jax.eval_shape(self.module.init, jax.random.key(0), *TEXT_INPUTS)["params"]
        if self.projection:
            shape = (self.module.width, self.projection)
            made = {**made, "projection": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}}
        return made

    def __call__(self, params: Any, ids: Array) -> tuple[Array, Array]:
        """Token ids (B, L) to tokens (B, L, D) and pooled (B, P), float32.

        Pooled is the state at the end token after the final normalisation, projected if there is a
        projection. Padding is attended to, as these networks were trained.
        """
        mask = jnp.ones(ids.shape, bool)
        variables = {"params": {k: v for k, v in params.items() if k != "projection"}}
        result: Any = self.module.apply(variables, ids, mask, method=Clip.states)
        states, last = result
        pooled = self.pool(last, ids, mask)
        if self.projection:
            pooled = pooled @ params["projection"]["kernel"].astype(jnp.float32)
        tokens = states[-2] if self.penultimate else last
        return tokens.astype(jnp.float32), pooled.astype(jnp.float32)


def read(folder: Path, *, penultimate: bool = False) -> Encoder:
    """The text encoder of a folder's config.json.

    Args:
      folder: with config.json.
      penultimate: see `Encoder`.

    Raises:
      UserError: no such file, another model, or a field that is not supported.
    """
    config = Config(folder / "config.json", sources.read(folder / "config.json"))
    config.one_of("model_type", ["clip_text_model"], "")
    if config.values.get("use_attention_mask"):
        raise UserError(
            f"found use_attention_mask=True in {config.path}; expected false; encoders that do not "
            "attend to padding are not supported, choose another model"
        )
    module = clip_of(config)
    if penultimate and module.layers < 2:
        raise UserError(
            f"found num_hidden_layers={module.layers} in {config.path}; expected 2 or more, since "
            "the last but one is used; choose another model"
        )
    kinds = config.values.get("architectures") or ["CLIPTextModel"]
    projected = "CLIPTextModelWithProjection" in kinds
    width = config.get("projection_dim", 512) if projected else 0
    return Encoder(module, pool_of(config), width, penultimate)


def load(
    encoder: Encoder,
    folder: Path,
    *,
    dtype: Dtype = jnp.float32,
    variant: str | None = None,
    shardings: Any = None,
) -> Any:
    """The parameters of a folder's files; see `weights.load`. Computation is float32."""
    unused = () if encoder.projection else ("text_projection.",)
    return weights.load(
        encoder.shapes(),
        weights.find(folder, STEM, variant=variant),
        names.of_text(module_names(encoder.module.layers)),
        folder=folder,
        dtype=dtype,
        shardings=shardings,
        unused=unused,
    )


def read_tokenizer(
    folder: Path, encoder: Encoder, *, padding: str | None = None
) -> Callable[[Sequence[str]], np.ndarray]:
    """A function from texts to ids, int32 (B, L), padded to the encoder's number of positions.

    It warns once for each text that is cut.

    Args:
      folder: with vocab.json and merges.txt, or tokenizer.json.
      encoder: whose vocabulary it has.
      padding: token; None for the folder's.

    Raises:
      UserError: a file that is missing or that can't be read, or the tokenizer of another model.
    """
    tokenizer = clip_tokenizer(_existing(folder))
    known = tokenizer.get_vocab(with_added_tokens=True)
    if max(known.values()) >= encoder.module.vocabulary:
        raise UserError(
            f"found the id {max(known.values())} in the tokenizer of {folder}; expected ids below "
            f"vocab_size={encoder.module.vocabulary} of the text encoder's config.json; use both "
            "files of the same model"
        )
    token = padding or _padding(folder)
    padding_id = known.get(token)
    if padding_id is None:
        raise UserError(
            f"found pad_token={token!r} in {folder}; expected a token of its vocabulary; download "
            "its files again"
        )
    # As in transformers, where the token is also found in texts: "!" of Stable Diffusion 2 and XL.
    tokenizer.add_special_tokens([token])
    length = encoder.module.positions
    tokenise = tokenise_with(tokenizer, length=length, name=folder.name)

    def ids(texts: Sequence[str]) -> np.ndarray:
        found = tokenise(texts)
        return np.where(found.mask, found.ids, np.int32(padding_id))

    return ids


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(
            f"found no folder {folder}; expected one with vocab.json and merges.txt; download it"
        )
    return folder


def _padding(folder: Path) -> str:
    """The padding token of the tokenizer's files, or else the end token."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        token = read_json(path).get("pad_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return END


class Part(NamedTuple):
    """An encoder with its weights and tokenizer."""

    encoder: Encoder
    params: Any
    ids: Callable[[Sequence[str]], np.ndarray]


def texts(parts: Sequence[Part], *, zeros_for_none: bool, identity: str) -> Texts:
    """The encoding of texts for the U-Net, by one encoder, or by two next to each other.

    Args:
      parts: the encoders; the pooled vector is the last one's, if it has a projection.
      zeros_for_none: whether the null condition is zeros instead of the empty text's encoding.
      identity: of the weights.
    """
    run = jax.jit(lambda encoder, params, ids: encoder(params, ids), static_argnums=0)
    length = min(part.encoder.module.positions for part in parts)

    def encode(captions: Sequence[str]) -> Text:
        with jax.default_matmul_precision("float32"):
            made = [run(part.encoder, part.params, part.ids(captions)) for part in parts]
        tokens = np.concatenate([np.asarray(tokens)[:, :length] for tokens, _ in made], axis=-1)
        pooled = np.asarray(made[-1][1]) if parts[-1].encoder.projection else None
        return Text(tokens, np.ones(tokens.shape[:2], bool), pooled)

    width = sum(part.encoder.module.width for part in parts)
    null = cache(lambda: _null(encode, zeros_for_none))
    pooled_width = parts[-1].encoder.projection
    return Texts(width, None, length, encode, identity, null=null, pooled_width=pooled_width)


def _null(encode: Callable[[Sequence[str]], Text], zeros: bool) -> Text:
    empty = encode([""])
    if not zeros:
        return empty
    pooled = None if empty.pooled is None else np.zeros_like(empty.pooled)
    return Text(np.zeros_like(empty.tokens), empty.mask, pooled)
