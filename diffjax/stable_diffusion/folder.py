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
from diffjax.latent.first_stage import FirstStage, Scaling, StageParams
from diffjax.latent.space import LatentSpace
from diffjax.models.condition import Text
from diffjax.models.controlnet import ControlledNetwork
from diffjax.models.linen import from_linen
from diffjax.models.network import Network
from diffjax.models.ops import Ops
from diffjax.models.stable_diffusion import SIZES
from diffjax.progress import Bar
from diffjax.stable_diffusion import (
    controlnet,
    image_adapter,
    scheduler,
    sources,
    text,
    unet,
    vae,
    weights,
)
from diffjax.stable_diffusion.controlnet import Control
from diffjax.stable_diffusion.fields import Fields
from diffjax.stable_diffusion.image_adapter import ImageAdapter
from diffjax.stable_diffusion.scheduler import Scheduler
from diffjax.stable_diffusion.text import Part
from diffjax.stable_diffusion.tokenizer import PLAIN, Prompts
from diffjax.stable_diffusion.unet import UNet
from diffjax.types import Dtype

INDEX = "model_index.json"
TEXTS_A_TIME = 64
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

ENCODERS = ("text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
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
      unet, params: the network and its parameters; None where they are not read.
      texts: the text encoders, with their parameters.
      zeros_for_none: whether the null condition is zeros, as for SDXL.
      stage, stage_params: the first stage, for images of the size that it was trained on.
      scheduler: schedule, parametrisation and the settings of sampling.
      text_digest: changes with the text encoders' weights.
      variant: of the weights' files, see `load_folder`.
      prompts: how they are read.
      chunks: in which each is encoded.
      controls: ControlNets, with their parameters.
      image_adapter: see `image_adapter`; None for none.
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
    prompts: Prompts = PLAIN
    chunks: int = 1
    controls: tuple[Control, ...] = ()
    image_adapter: ImageAdapter | None = None

    @property
    def network(self) -> Network:
        """The U-Net, with the image adapter and the ControlNets if there are any."""
        module = self.unet.module
        if self.image_adapter is not None:
            module = self.image_adapter.extended(module)
        if not self.controls:
            return from_linen(module)
        return ControlledNetwork(module, tuple(control.module for control in self.controls))

    @property
    def network_params(self) -> Any:
        """The parameters of `network`."""
        params = self.params
        if self.image_adapter is not None:
            params = self.image_adapter.merged(params)
        if not self.controls:
            return params
        return {"unet": params, "controls": tuple(one.params for one in self.controls)}

    @property
    def is_extended(self) -> bool:
        """Whether `network` is more than the U-Net."""
        return bool(self.controls) or self.image_adapter is not None

    def with_ops(self, ops: Ops) -> "Folder":
        """The same with other kernels of the U-Net and the first stage."""
        encoder, decoder = (
            module.clone(ops=ops, mix=ops.attention)
            for module in (self.stage.encoder, self.stage.decoder)
        )
        stage = self.stage._replace(encoder=encoder, decoder=decoder)
        return self._replace(unet=self.unet.with_ops(ops), stage=stage)

    def with_controls(
        self, folders: str | Path | Sequence[str | Path], *, variant: str | None = None
    ) -> "Folder":
        """The same with ControlNets; see `controlnet.load`.

        Args:
          folders: one, or several, whose results are summed.
          variant: of the weights' files.

        Raises:
          UserError: a folder that can't be read, or a ControlNet of another family.
        """
        controls = tuple(
            controlnet.load(
                path, self.unet.module, latent_channels=self.unet.latent_channels,
                factor=self.stage.factor, variant=variant,
            )
            for path in controlnet.paths_of(folders)
        )  # fmt: skip
        return self._replace(controls=self.controls + controls)

    def with_image_adapter(
        self, file: str | Path | None, encoder: str | Path | None = None
    ) -> "Folder":
        """The same with an IP-Adapter; see `image_adapter.load`. Itself for None.

        Raises:
          UserError: files that can't be read, of another kind, or for another network.
        """
        if file is None:
            if encoder is not None:
                raise UserError(
                    f"image_encoder is {str(encoder)!r}, and there is no image_adapter that it is "
                    "for: give both, or leave it out"
                )
            return self
        return self._replace(image_adapter=image_adapter.load(file, encoder, self.unet.module))

    def chunks_of(self, prompts: Sequence[str]) -> int:
        """The number of chunks in which these prompts are encoded; see `Prompts.long`."""
        return max(part.tokenizer.count(prompts, self.prompts) for part in self.texts)

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
            self.texts, zeros_for_none=self.zeros_for_none, identity=self.text_digest,
            how=self.prompts, chunks=self.chunks,
        )  # fmt: skip
        return Conditions(
            texts=texts._replace(encode=_in_batches(texts.encode)),
            keep_map=True,
            augmentation_width=SIZES if has_sizes else 0,
            unchanged=tuple(map(float, (*size, 0, 0, *size))) if has_sizes else (),
            controls=len(self.controls),
            image_prompt=self.image_adapter.embeddings if self.image_adapter else None,
        )

    def about(self, size: tuple[int, int]) -> DataInfo:
        """The description of the images, of a height and width."""
        shape = (*size, self.stage.image_shape[-1])
        return DataInfo(self.name, shape, has_captions=True)


def _in_batches(encode: Callable[[Sequence[str]], Text]) -> Callable[[Sequence[str]], Text]:
    """The encoding of any number of texts, `TEXTS_A_TIME` at a time."""

    def encode_all(captions: Sequence[str]) -> Text:
        parts = []
        with Bar("encoding prompts", len(captions), unit="prompt", at_once=TEXTS_A_TIME) as bar:
            for start in range(0, len(captions), TEXTS_A_TIME):
                parts.append(encode(captions[start : start + TEXTS_A_TIME]))
                bar(start + TEXTS_A_TIME)
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
    reads_unet: bool = True,
) -> Folder:
    """Reads a folder, or a file: every config is read and checked before any weights.

    Args:
      path: with model_index.json; or a file of the original layout, see `sources`.
      dtype: "float32", "bfloat16" or "float16", of the weights and of the U-Net's and the
        autoencoder's computation; that of text encoders is float32.
      variant: of the weights' files, such as "fp16"; see `weights.find`.
      tile: side in latents of the tiles in which images are encoded and decoded; 0 for whole ones.
      tokenizer, prediction: of a file, see `sources.given`.
      reads_unet: whether the U-Net's weights are read; else `params` is None.

    Raises:
      UserError: no such folder, a file that is missing or corrupt, or a model that is not
        supported.
    """
    folder = expanded(path, name="folder")
    given = sources.given(folder, tokenizer=tokenizer, prediction=prediction)
    read = _read_configs(folder, dtype, tile=tile, given=given)
    tokenisers = [
        text.read_tokenizer(place, encoder, padding=padding)
        for (place, padding), encoder in zip(given.tokenizers, read.encoders, strict=False)
    ]
    places = ENCODERS[: len(read.encoders)]
    parts = [
        Part(encoder, text.load(encoder, folder / place, dtype=read.dtype, variant=variant), ids)
        for encoder, ids, place in zip(read.encoders, tokenisers, places, strict=True)
    ]
    found = Folder(
        folder, read.unet, None, tuple(parts), read.zeros_for_none, read.stage,
        vae.load(read.stage, read.scaling, folder / "vae", variant=variant), read.scheduler,
        "-".join(
            weights.digest(weights.find(folder / place, text.STEM, variant=variant))
            for place in places
        ),
        variant,
    )  # fmt: skip
    return found._replace(params=found.unet_params()) if reads_unet else found


def shapes_of_folder(
    path: str | Path,
    *,
    dtype: str = "float32",
    tile: int = 0,
    tokenizer: str | Path | None = None,
    prediction: str | None = None,
) -> Folder:
    """A folder with jax.ShapeDtypeStruct for all weights, of which no file is read.

    It has no tokenizers, and encodes neither texts nor images.

    Args:
      path, dtype, tile, tokenizer, prediction: as for `load_folder`.

    Raises:
      UserError: as `load_folder`, of the configs.
    """
    folder = expanded(path, name="folder")
    given = sources.given(folder, tokenizer=tokenizer, prediction=prediction)
    read = _read_configs(folder, dtype, tile=tile, given=given)

    def of_kind(shapes: Any, kind: Dtype) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, kind), shapes)

    parts = (Part(one, of_kind(one.shapes(), read.dtype), None) for one in read.encoders)
    of_stage = of_kind(vae.shapes(read.stage), read.stage.encoder.dtype)
    return Folder(
        folder, read.unet, of_kind(read.unet.shapes(), read.dtype), tuple(parts),
        read.zeros_for_none, read.stage, StageParams(of_stage, (), read.scaling), read.scheduler,
    )  # fmt: skip


class _Configs(NamedTuple):
    """The contents of a folder's JSON files."""

    dtype: Dtype
    unet: UNet
    stage: FirstStage
    scaling: Scaling
    scheduler: Scheduler
    encoders: tuple[text.Encoder, ...]
    zeros_for_none: bool


def _read_configs(folder: Path, dtype: str, *, tile: int, given: sources.Given) -> _Configs:
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}: expected {' or '.join(DTYPES)}")
    kind = DTYPES[dtype]
    is_xl, zeros = _read_index(Fields(folder / INDEX))
    found = unet.read(folder / "unet", dtype=kind)
    if given.side:
        found = found._replace(size=(given.side, given.side))
    stage, scaling = vae.read(folder / "vae", dtype=kind, size=found.size, tile=tile)
    read = scheduler.read(folder / "scheduler", prediction=given.prediction)
    places = ENCODERS if is_xl else ENCODERS[:1]
    encoders = tuple(text.read(folder / place, penultimate=is_xl) for place in places)
    _check_widths(folder, found, stage, encoders)
    return _Configs(kind, found, stage, scaling, read, encoders, zeros)


def _read_index(index: Fields) -> tuple[bool, bool]:
    """Whether a pipeline has two text encoders, and whether no text is zeros."""
    kind = index.value("_class_name")
    if kind not in _PIPELINES:
        index.refuse("_class_name", " or ".join(_PIPELINES))
    is_xl = _PIPELINES[kind]
    count = 2 if is_xl else 1
    for part in ("unet", "vae", "scheduler", *ENCODERS[:count], *_TOKENIZERS[:count]):
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
    folder: Path, found: UNet, stage: FirstStage, encoders: Sequence[text.Encoder]
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
