"""The parts of a model: of a folder as diffusers writes it, or of one file of the original layout.

A part of a file has a path, too: "model.safetensors/unet" is that file's U-Net, as if the file were
a folder of diffusers, with configs of its family and with diffusers' names of tensors.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.conditioning.model_folder import Tensors, read_json
from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.stable_diffusion import families, original_names, torch_tensors
from diffjax.stable_diffusion.families import Encoder, Family

PREDICTIONS = ("epsilon", "v_prediction")
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
# Queries, keys and values of OpenCLIP are one tensor.
_THIRDS = ("q_proj", "k_proj", "v_proj")
# Tensors of the parts that are no weights of theirs.
_OTHERS = ("logit_scale", "attn_mask", "loss.", "model_ema.")
# Tensors of no part: averages of the U-Net's, and the noise schedule of the original code.
_UNUSED = ("model_ema.", "denoiser.")

_logger = logging.getLogger("diffjax")


class File(NamedTuple):
    """An opened file.

    Attributes:
      path: of it.
      tensors: with their names in it.
      family: of the model.
      channels: that its U-Net takes.
    """

    path: Path
    tensors: Tensors
    family: Family
    channels: int

    @property
    def predicts(self) -> str | None:
        """What its U-Net predicts; None if the file does not tell."""
        return "v_prediction" if "v_pred" in self.tensors.files else self.family.predicts

    def config(self, name: str) -> dict[str, Any]:
        """One of `Family.configs`."""
        found = dict(self.family.configs(self.channels)[name])
        if name.startswith("scheduler/") and self.predicts:
            found["prediction_type"] = self.predicts
        # Marks of SDXL's fine-tunings, which are empty tensors.
        if name.startswith("scheduler/") and "ztsnr" in self.tensors.files:
            found |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return found


class _Source(NamedTuple):
    """Where a tensor is: a third of another's first axis, or another one transposed, or it."""

    name: str
    third: int | None = None
    transposed: bool = False


class Renamed(Tensors):
    """Tensors of a part with diffusers' names."""

    def __init__(self, inner: Tensors, sources: Mapping[str, _Source]) -> None:
        """Takes the file's tensors, and where each one is."""
        super().__init__({name: inner.files[source.name] for name, source in sources.items()})
        self._inner, self._sources = inner, sources

    def check(self) -> None:
        """See `Tensors.check`; names are those of the file itself."""

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors.shape`."""
        source = self._sources[name]
        shape = self._inner.shape(source.name)
        if source.third is not None:
            return (shape[0] // 3, *shape[1:])
        return shape[::-1] if source.transposed else shape

    def read(self, name: str, *, shape: Sequence[int], index: tuple[slice, ...] = ()) -> np.ndarray:
        """See `Tensors.read`."""
        source, shape = self._sources[name], tuple(shape)
        read = self._inner.read
        if source.transposed:
            return read(source.name, shape=shape[::-1], index=index[::-1]).T
        if source.third is None:
            return read(source.name, shape=shape, index=index)
        length = shape[0]
        begin, end, _ = (index[0] if index else slice(None)).indices(length)
        start = source.third * length
        part = (slice(start + begin, start + end), *index[1:])
        return read(source.name, shape=(3 * length, *shape[1:]), index=part)


def is_file(path: Path) -> bool:
    """Whether a path is a file that may be one of the original layout."""
    return path.suffix in SUFFIXES and path.is_file()


def file_of(path: Path) -> File | None:
    """The file that a path leads into; None for one in a folder.

    Raises:
      UserError: a file of another layout or family, or one that can't be read.
    """
    for parent in (path, *path.parents):
        if parent.is_file():
            status = parent.stat()
            return _opened(parent, status.st_mtime_ns, status.st_size) if parent != path else None
        if parent.exists():
            return None
    return None


class Given(NamedTuple):
    """What a folder has in its files, and a file of the original layout does not.

    Attributes:
      tokenizers: for each text encoder the folder of its tokenizer, and the padding token, None for
        that folder's.
      prediction: the scheduler's prediction_type; None for that of its config.
      side: of the latents that the model was trained on; None for that of the U-Net's config.
    """

    tokenizers: tuple[tuple[Path, str | None], ...]
    prediction: str | None = None
    side: int | None = None


def given(
    path: Path, *, tokenizer: str | Path | None, prediction: str | None, section: str = ""
) -> Given:
    """What was given with a folder or a file.

    Args:
      path: of either.
      tokenizer: a folder with CLIP's vocab.json and merges.txt, for a file.
      prediction: what a file's U-Net predicts, "epsilon" or "v_prediction". Needed for Stable
        Diffusion 2, whose models differ in that alone: the 768 ones predict v. Others predict
        epsilon, except for fine-tunings.
      section: what the arguments' names begin with in messages, as "config.model.".

    Raises:
      UserError: an argument that is missing for a file, or of no use for a folder.
    """
    if not path.is_file():
        if tokenizer is not None or prediction is not None:
            raise UserError(
                f"{path} is no file of a model: leave out {section}tokenizer and "
                f"{section}prediction, which are of files of the original layout; a folder has its "
                "own"
            )
        return Given(tuple((path / name, None) for name in ("tokenizer", "tokenizer_2")))
    file = file_of(path / "unet")
    assert file is not None
    if tokenizer is None:
        raise UserError(
            f"{path} has no vocabulary for its text encoders: give {section}tokenizer=FOLDER with "
            'CLIP\'s vocab.json and merges.txt, such as the folder "tokenizer" of any Stable '
            "Diffusion as diffusers writes it"
        )
    if prediction not in (None, *PREDICTIONS):
        raise UserError(
            f"{section}prediction is {prediction!r}: expected {' or '.join(PREDICTIONS)}"
        )
    predicted = prediction or file.predicts
    if predicted is None:
        raise UserError(
            f"{path} is of {file.family.name}, and does not tell what its U-Net predicts: give "
            f'{section}prediction="epsilon" (512-base) or '
            f'{section}prediction="v_prediction" (768-v)'
        )
    place = expanded(tokenizer, name="tokenizer")
    return Given(
        tuple((place, encoder.padding) for encoder in file.family.texts),
        predicted,
        file.family.sides.get(predicted),
    )


def read(path: Path) -> dict[str, Any]:
    """A JSON file of a folder, or what is in its stead for a part of a file.

    Raises:
      UserError: as `read_json` and `file_of`.
    """
    file = file_of(path)
    return read_json(path) if file is None else file.config(str(path.relative_to(file.path)))


def tensors_of(part: Path, file: File) -> Tensors:
    """The tensors of a part of a file.

    Raises:
      UserError: a file that can't be read.
    """
    family, names = file.family, list(file.tensors.files)
    if part.name == "unet":
        config = file.config("unet/config.json")
        levels = len(config.get("block_out_channels", range(4)))
        table = original_names.of_unet(levels, config.get("layers_per_block", 2))
        return _renamed(file, families.UNET, table)
    if part.name == "vae":
        levels = len(family.vae["block_out_channels"])
        table = original_names.of_vae(levels, family.vae.get("layers_per_block", 1))
        return _renamed(file, families.VAE, table)
    encoder = family.texts[("text_encoder", "text_encoder_2").index(part.name)]
    if encoder.is_open_clip:
        return Renamed(file.tensors, _of_open_clip(names, encoder))
    return _renamed(file, encoder.prefix, {})


def _renamed(file: File, prefix: str, table: original_names.Table) -> Tensors:
    sources = {}
    for name in file.tensors.files:
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and not rest.startswith(_OTHERS):
            sources[original_names.renamed(rest, table) or rest] = _Source(name)
    return Renamed(file.tensors, sources)


def _of_open_clip(names: Sequence[str], encoder: Encoder) -> dict[str, _Source]:
    layers = encoder.config["num_hidden_layers"]
    table = original_names.of_open_clip(layers)
    sources = {}
    for name in names:
        rest = name.removeprefix(encoder.prefix)
        if not name.startswith(encoder.prefix) or rest.startswith(_OTHERS):
            continue
        found = original_names.renamed(rest, table)
        if found is None:
            # Stable Diffusion 2 does not use the last layer.
            if not rest.startswith(f"transformer.resblocks.{layers}."):
                sources[rest] = _Source(name)
        elif found == "text_projection":
            sources["text_projection.weight"] = _Source(name, transposed=True)
        elif found == "embeddings.position_embedding":
            sources[f"{found}.weight"] = _Source(name)
        elif ".in_proj_" in found:
            owner, kind = found.split(".in_proj_")
            for third, part in enumerate(_THIRDS):
                sources[f"{owner}.{part}.{kind}"] = _Source(name, third=third)
        else:
            sources[found] = _Source(name)
    return sources


@lru_cache(maxsize=1)
def _opened(path: Path, changed: int, size: int) -> File:
    """The file; it is opened again when it was changed."""
    tensors = torch_tensors.of_file(path)
    family, channels = families.recognise(tensors, path)
    edm = [name for name in tensors.files if name.startswith(("edm_mean", "edm_vpred"))]
    if edm:
        raise UserError(
            f"found {edm[0]} in {path}; expected a model of Stable Diffusion's own noise "
            "schedule; EDM's is not supported, choose another model"
        )
    known = (families.UNET, families.VAE, *(encoder.prefix for encoder in family.texts), *_UNUSED)
    others = [name for name in tensors.files if "." in name and not name.startswith(known)]
    if others:
        _logger.warning(
            "%s: %d tensors are not of %s and are not used, such as %s",
            path.name, len(others), family.name, min(others),
        )  # fmt: skip
    return File(path, tensors, family, channels)
