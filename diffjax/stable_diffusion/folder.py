"""A whole folder: the networks and their weights, texts, schedule and first stage."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.conditioning.conditions import Conditions
from diffjax.data.info import DataInfo
from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.latent.first_stage import FirstStage, StageParams
from diffjax.latent.space import LatentSpace
from diffjax.models.condition import Text
from diffjax.models.stable_diffusion import SIZES
from diffjax.stable_diffusion import scheduler, sources, text, unet, vae, weights
from diffjax.stable_diffusion.fields import Fields
from diffjax.stable_diffusion.scheduler import Scheduler
from diffjax.stable_diffusion.text import Part
from diffjax.stable_diffusion.unet import UNet
from diffjax.types import Dtype

INDEX = "model_index.json"
TEXTS_A_TIME = 64
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

_ONE = ("text_encoder", "tokenizer")
_TWO = ("text_encoder_2", "tokenizer_2")
# Classes of pipelines, and whether they have two text encoders.
_PIPELINES = {
    "StableDiffusionPipeline": False,
    "StableDiffusionImg2ImgPipeline": False,
    "StableDiffusionInpaintPipeline": False,
    "StableDiffusionXLPipeline": True,
    "StableDiffusionXLImg2ImgPipeline": True,
    "StableDiffusionXLInpaintPipeline": True,
}
# Parts that are not used: a filter of results, and what others need.
_UNUSED = ("safety_checker", "feature_extractor")

_logger = logging.getLogger("diffjax")


class Folder(NamedTuple):
    """Stable Diffusion from a folder that diffusers wrote.

    Attributes:
      path: the folder.
      unet, params: the network and its parameters; None for those of `load_parts`.
      texts: the text encoders, with their parameters.
      zeros_for_none: whether the null condition is zeros, as for SDXL.
      stage, stage_params: the first stage, for images of the size that it was trained on.
      scheduler: schedule, parametrisation and the settings of sampling.
      text_digest: changes with the text encoders' weights.
      variant: of the weights' files, see `load_folder`.
    """

    path: Path
    unet: UNet
    params: Any
    texts: tuple[Part, ...]
    zeros_for_none: bool
    stage: FirstStage
    stage_params: StageParams
    scheduler: Scheduler
    text_digest: str = ""
    variant: str | None = None

    def unet_params(self, dtype: Dtype | None = None, *, shardings: Any = None) -> Any:
        """The U-Net's parameters, read from the files; in its compute type by default."""
        module = self.unet.module
        wanted = self.unet._replace(module=module.clone(dtype=dtype or module.dtype))
        place = self.path / "unet"
        return unet.load(wanted, place, variant=self.variant, shardings=shardings)

    @property
    def unet_digest(self) -> str:
        """Changes with the U-Net's weights."""
        return weights.digest(weights.find(self.path / "unet", unet.STEM, variant=self.variant))

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that it was trained on."""
        return self.stage.image_shape[:2]

    def space(self, size: tuple[int, int]) -> LatentSpace:
        """The latents of images of a height and width.

        Raises:
          UserError: sides that are no multiples of the autoencoder's factor.
        """
        factor = self.stage.factor
        for name, side in zip(("height", "width"), size, strict=True):
            if side < factor or side % factor:
                raise UserError(
                    f"{name} is {side}: expected a multiple of {factor}, such as "
                    f"{max(factor, side // factor * factor)}"
                )
        height, width = size
        stage = self.stage._replace(
            image_shape=(height, width, self.stage.image_shape[-1]),
            latent_shape=(height // factor, width // factor, self.stage.latent_shape[-1]),
        )
        return LatentSpace(
            stage, self.stage_params, description=f"the VAE of {self.name}",
            inpaints=self.unet.module.map_channels > 0,
        )  # fmt: skip

    def conditions(self, size: tuple[int, int]) -> Conditions:
        """What the network is conditioned on, for images of a height and width."""
        has_sizes = self.unet.module.pooled_width > 0
        texts = text.texts(
            self.texts, zeros_for_none=self.zeros_for_none, identity=self.text_digest
        )
        return Conditions(
            texts=texts._replace(encode=_in_batches(texts.encode)),
            keep_map=True,
            augmentation_width=SIZES if has_sizes else 0,
            unchanged=tuple(map(float, (*size, 0, 0, *size))) if has_sizes else (),
        )

    def about(self, size: tuple[int, int]) -> DataInfo:
        """The description of the images, of a height and width."""
        shape = (*size, self.stage.image_shape[-1])
        return DataInfo(self.name, shape, has_captions=True)


def _in_batches(encode: Callable[[Sequence[str]], Text]) -> Callable[[Sequence[str]], Text]:
    """The encoding of any number of texts, `TEXTS_A_TIME` at a time."""

    def encode_all(captions: Sequence[str]) -> Text:
        starts = range(0, len(captions), TEXTS_A_TIME)
        parts = [encode(captions[start : start + TEXTS_A_TIME]) for start in starts]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    return encode_all


def is_folder(path: Path) -> bool:
    """Whether a path is a folder that diffusers wrote for a whole pipeline."""
    return (path / INDEX).is_file()


def load_folder(
    path: str | Path,
    *,
    dtype: str = "float32",
    variant: str | None = None,
    tile: int = 0,
    tokenizer: str | Path | None = None,
    prediction: str | None = None,
) -> Folder:
    """Reads a folder, or a file: every config is read and checked before any weights.

    Args:
      path: with model_index.json; or a file of the original layout, see `sources`.
      dtype: "float32", "bfloat16" or "float16", of the weights and of the U-Net's and the
        autoencoder's computation; that of text encoders is float32.
      variant: of the weights' files, such as "fp16"; see `weights.find`.
      tile: side in latents of the tiles in which images are decoded; 0 decodes them whole.
      tokenizer, prediction: of a file, see `sources.given`.

    Raises:
      UserError: no such folder, a file that is missing or corrupt, or a model that is not
        supported.
    """
    parts = load_parts(
        path, dtype=dtype, variant=variant, tile=tile, tokenizer=tokenizer, prediction=prediction
    )
    return parts._replace(params=parts.unet_params())


def load_parts(
    path: str | Path,
    *,
    dtype: str = "float32",
    variant: str | None = None,
    tile: int = 0,
    tokenizer: str | Path | None = None,
    prediction: str | None = None,
) -> Folder:
    """Reads all of a folder but the U-Net's weights; see `load_folder`."""
    folder = expanded(path, name="folder")
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}: expected {' or '.join(DTYPES)}")
    kind = DTYPES[dtype]
    given = sources.given(folder, tokenizer=tokenizer, prediction=prediction)
    index = Fields(folder / INDEX)
    is_xl, zeros = _read_index(index)
    found = unet.read(folder / "unet", dtype=kind)
    if given.side:
        found = found._replace(size=(given.side, given.side))
    stage, scaling = vae.read(folder / "vae", dtype=kind, size=found.size, tile=tile)
    read = scheduler.read(folder / "scheduler", prediction=given.prediction)
    places = (_ONE, _TWO) if is_xl else (_ONE,)
    encoders = [text.read(folder / encoder, penultimate=is_xl) for encoder, _ in places]
    tokenisers = [
        text.read_tokenizer(place, encoder, padding=padding)
        for (place, padding), encoder in zip(given.tokenizers, encoders, strict=False)
    ]
    _check_widths(folder, found, stage, encoders)
    parts = [
        Part(encoder, text.load(encoder, folder / name, dtype=kind, variant=variant), ids)
        for encoder, ids, (name, _) in zip(encoders, tokenisers, places, strict=True)
    ]
    stage_params = vae.load(stage, scaling, folder / "vae", variant=variant)
    digest = "-".join(
        weights.digest(weights.find(folder / name, text.STEM, variant=variant))
        for name, _ in places
    )
    return Folder(
        folder, found, None, tuple(parts), zeros, stage, stage_params, read, digest, variant
    )


def shapes_of_folder(path: str | Path, *, dtype: str = "float32", tile: int = 0) -> Folder:
    """A folder with jax.ShapeDtypeStruct for all weights, of which no file is read.

    It has no tokenizers, and encodes neither texts nor images.

    Raises:
      UserError: as `load_folder`, of the configs.
    """
    folder = expanded(path, name="folder")
    kind = DTYPES[dtype]
    is_xl, zeros = _read_index(Fields(folder / INDEX))
    found = unet.read(folder / "unet", dtype=kind)
    stage, scaling = vae.read(folder / "vae", dtype=kind, size=found.size, tile=tile)
    places = (_ONE, _TWO) if is_xl else (_ONE,)
    encoders = [text.read(folder / encoder, penultimate=is_xl) for encoder, _ in places]
    _check_widths(folder, found, stage, encoders)

    def of_kind(shapes: Any, kind: Dtype = kind) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind), shapes)

    def ids(texts: Sequence[str]) -> np.ndarray:
        raise ValueError("a folder without weights encodes no texts")

    parts = tuple(Part(encoder, of_kind(encoder.shapes()), ids) for encoder in encoders)
    stage_params = StageParams(of_kind(vae.shapes(stage), stage.encoder.dtype), (), scaling)
    read = scheduler.read(folder / "scheduler")
    return Folder(folder, found, of_kind(found.shapes()), parts, zeros, stage, stage_params, read)


def _read_index(index: Fields) -> tuple[bool, bool]:
    """Whether a pipeline has two text encoders, and whether no text is zeros."""
    kind = index.value("_class_name")
    if kind not in _PIPELINES:
        index.refuse("_class_name", " or ".join(_PIPELINES))
    is_xl = _PIPELINES[kind]
    for part in ("unet", "vae", "scheduler", *_ONE, *(_TWO if is_xl else ())):
        value = index.value(part)
        if not isinstance(value, list | tuple) or len(value) != 2 or None in value:
            index.refuse(part, "the library and class of that part")
    index.only("requires_aesthetics_score", False, None)
    if index.value("safety_checker") not in (None, [None, None]):
        _logger.info("%s: its safety_checker is not used", index.path.parent)
    index.skip("requires_safety_checker", "feature_extractor")
    zeros = index.flag("force_zeros_for_empty_prompt", is_xl)
    index.flag("add_watermarker", False)
    for name, value in index.values.items():
        if value in ([None, None], False):
            index.skip(name)
    index.finish()
    return is_xl, is_xl and zeros


def _check_widths(
    folder: Path, found: UNet, stage: FirstStage, encoders: list[text.Encoder]
) -> None:
    module = found.module
    for what, here, there in (
        ("features a token", sum(encoder.module.width for encoder in encoders), module.text_width),
        ("features of the pooled text", encoders[-1].projection if module.pooled_width else 0,
         module.pooled_width),
        ("latent channels", stage.latent_shape[-1], found.latent_channels),
    ):  # fmt: skip
        if here != there:
            raise UserError(
                f"found {there} {what} in {folder / 'unet'} and {here} in the other parts of "
                f"{folder}; expected the same; use all parts of the same model"
            )
