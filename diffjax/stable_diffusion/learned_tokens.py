"""Learned tokens: words with vectors of their own (Gal et al. 2022, "An image is worth one word").

Three layouts are read, with a row of each tensor for each vector:

    {token: (k, D)}                     diffusers' learned_embeds.safetensors, or .bin
    {"clip_l": (k, D), "clip_g": ...}   of SDXL's two text encoders
    {"emb_params": (k, D)}              of other programs

The token of the latter two is in the metadata that diffjax writes, or else the file's name.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffjax import arguments
from diffjax.conditioning.clip import end_pool
from diffjax.conditioning.model_folder import Tensors
from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.stable_diffusion import torch_tensors
from diffjax.stable_diffusion.folder import Folder
from diffjax.stable_diffusion.text import Encoder, Part
from diffjax.stable_diffusion.weights_writer import Stored, write_file

FILE = "learned_embeds.safetensors"  # as diffusers looks for it in a folder
_OF_XL = ("clip_l", "clip_g")
_UNNAMED = "emb_params"
_TOKEN = "token"

Files = str | Path | Sequence[str | Path]


class Learned(NamedTuple):
    """A token.

    Attributes:
      token: as it is in prompts.
      vectors: of each text encoder, (k, D) float32.
    """

    token: str
    vectors: tuple[np.ndarray, ...]


def with_tokens(folder: Folder, learned: Sequence[Learned]) -> Folder:
    """A folder whose text encoders know more tokens.

    Args:
      folder: the folder.
      learned: the tokens.

    Raises:
      UserError: a token that the tokenizer knows already.
    """
    parts = folder.texts
    for one in learned:
        parts = tuple(
            _extended(part, one.token, vectors)
            for part, vectors in zip(parts, one.vectors, strict=True)
        )
    return folder._replace(texts=parts)


def _extended(part: Part, token: str, vectors: np.ndarray) -> Part:
    made = known(part, token, len(vectors))
    table = jnp.asarray(part.params["word"]["embedding"])
    grown = jnp.concatenate([table, jnp.asarray(vectors, table.dtype)])
    module = part.encoder.module.clone(vocabulary=len(grown))
    return made._replace(
        encoder=made.encoder._replace(module=module),
        params={**part.params, "word": {"embedding": grown}},
    )


def known(part: Part, token: str, count: int) -> Part:
    """A text encoder whose tokenizer makes of a token the `count` ids after the vocabulary's.

    Raises:
      UserError: a token that the tokenizer knows already.
    """
    begin = part.encoder.module.vocabulary
    ids = part.tokenizer.with_token(token, range(begin, begin + count))
    # The end token's id is no longer the highest one.
    return part._replace(encoder=_ended(part.encoder, ids.ends[1]), ids=ids)


def _ended(encoder: Encoder, end: int) -> Encoder:
    return encoder._replace(pool=end_pool(end))


def opened(files: Files, folder: Folder) -> tuple[Learned, ...]:
    """Reads files.

    Args:
      files: one, or several in a list.
      folder: whose text encoders they are for.

    Raises:
      UserError: a file that is missing, that can't be read, of another layout or for another model.
    """
    several: Sequence[Any] = files if isinstance(files, list | tuple) else [files]
    for one in several:
        if not isinstance(one, str | Path):
            raise UserError(f"tokens is {arguments.shown(one)}: expected FILE, or a list of files")
    widths = tuple(part.encoder.module.width for part in folder.texts)
    return tuple(_read(expanded(one, name="tokens"), widths) for one in several)


def _read(path: Path, widths: tuple[int, ...]) -> Learned:
    tensors = torch_tensors.of_file(path)
    names = list(tensors.files)
    token = tensors.metadata().get(_TOKEN, path.stem)
    if set(names) == set(_OF_XL):
        names = list(_OF_XL)
    elif len(names) == 1 and names[0] != _UNNAMED:
        token = names[0]
    elif len(names) != 1:
        raise UserError(
            f"found {len(names)} tensors in {path}, such as {min(names, default='none')}; expected "
            f"one of a token's name, or {' and '.join(_OF_XL)}; choose another file"
        )
    if len(names) != len(widths):
        raise UserError(
            f"found vectors of {len(names)} text encoders in {path}; expected those of the "
            f"{len(widths)} of this model; choose a file of the same family"
        )
    vectors = tuple(
        _vectors(tensors, name, width, path) for name, width in zip(names, widths, strict=True)
    )
    if len({len(one) for one in vectors}) != 1:
        raise UserError(
            f"found {' and '.join(str(len(one)) for one in vectors)} vectors in {path}; expected "
            "as many for both text encoders; choose another file"
        )
    return Learned(token, vectors)


def _vectors(tensors: Tensors, name: str, width: int, path: Path) -> np.ndarray:
    shape = tensors.shape(name)
    if len(shape) not in (1, 2) or shape[-1] != width or 0 in shape:
        raise UserError(
            f"found {name} of shape {shape} in {path}; expected ({width},), or several of these; "
            "choose a file of the same family of Stable Diffusion"
        )
    return tensors.read(name, shape=shape).astype(np.float32).reshape(-1, width)


def save(path: str | Path, learned: Learned) -> Path:
    """Writes a token as a file that diffusers loads (`pipeline.load_textual_inversion`).

    Raises:
      UserError: a folder that can't be written to.
    """
    names = _OF_XL if len(learned.vectors) == 2 else (learned.token,)
    stored = []
    for name, vectors in zip(names, learned.vectors, strict=True):
        array = np.ascontiguousarray(vectors, np.float32)
        stored.append(Stored(name, array.shape, array.dtype, partial(_itself, array)))
    return write_file(expanded(path, name="path"), stored, {_TOKEN: learned.token})


def _itself(array: Any) -> Any:
    return array
