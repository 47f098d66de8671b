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

from diffjax.conditioning.clip import Clip, clip_of, module_names, pool_of
from diffjax.conditioning.conditions import Texts
from diffjax.conditioning.hugging_face import TEXT_INPUTS, Config, Pool
from diffjax.errors import UserError
from diffjax.models.condition import Text
from diffjax.stable_diffusion import names, sources, tokenizer, weights
from diffjax.stable_diffusion.prompts import scaled
from diffjax.stable_diffusion.tokenizer import PLAIN, Prompts, PromptTokenizer
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
) -> PromptTokenizer:
    """The tokenizer of a folder, for an encoder; see `tokenizer.read`."""
    module = encoder.module
    return tokenizer.read(
        folder, vocabulary=module.vocabulary, length=module.positions, padding=padding
    )


class Part(NamedTuple):
    """An encoder with its weights and tokenizer, which is None where no texts are encoded."""

    encoder: Encoder
    params: Any
    ids: PromptTokenizer | None

    @property
    def tokenizer(self) -> PromptTokenizer:
        """Of prompts.

        Raises:
          ValueError: there is none.
        """
        if self.ids is None:
            raise ValueError("a folder without weights encodes no texts")
        return self.ids


def texts(
    parts: Sequence[Part],
    *,
    zeros_for_none: bool,
    identity: str,
    how: Prompts = PLAIN,
    chunks: int = 1,
) -> Texts:
    """The encoding of texts for the U-Net, by one encoder, or by two next to each other.

    Args:
      parts: the encoders; the pooled vector is the last one's, of the first chunk, if it has a
        projection.
      zeros_for_none: whether the null condition is zeros instead of the empty text's encoding.
      identity: of the weights.
      how: the prompts are read.
      chunks: in which each text is encoded; their states are concatenated.
    """
    length = min(part.encoder.module.positions for part in parts)

    def of_part(part: Part, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        found = part.tokenizer.chunks(captions, chunks=chunks, how=how)
        flat = (array.reshape(-1, array.shape[-1]) for array in found)
        tokens, pooled = _states(part.encoder, part.params, *flat, how.weights)
        tokens = np.asarray(tokens)[:, :length].reshape(len(captions), chunks * length, -1)
        return tokens, np.asarray(pooled)[::chunks]

    def encode(captions: Sequence[str]) -> Text:
        with jax.default_matmul_precision("float32"):
            made = [of_part(part, captions) for part in parts]
        tokens = np.concatenate([tokens for tokens, _ in made], axis=-1)
        pooled = made[-1][1] if parts[-1].encoder.projection else None
        return Text(tokens, np.ones(tokens.shape[:2], bool), pooled)

    width = sum(part.encoder.module.width for part in parts)
    null = cache(lambda: _null(encode, zeros_for_none))
    pooled_width = parts[-1].encoder.projection
    return Texts(
        width, None, chunks * length, encode, identity, null=null, pooled_width=pooled_width
    )


@jax.jit(static_argnums=(0, 4))
def _states(
    encoder: Encoder, params: Any, ids: Array, weights: Array, scale: str
) -> tuple[Array, Array]:
    """`Encoder`'s result, with the weights of tokens; see `Prompts.weights`."""
    tokens, pooled = encoder(params, ids)
    if scale != "none":
        tokens = scaled(tokens, weights, keep_mean=scale == "scale_keep_mean")
    return tokens, pooled


def _null(encode: Callable[[Sequence[str]], Text], zeros: bool) -> Text:
    empty = encode([""])
    if not zeros:
        return empty
    pooled = None if empty.pooled is None else np.zeros_like(empty.pooled)
    return Text(np.zeros_like(empty.tokens), empty.mask, pooled)
