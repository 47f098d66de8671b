"""What is added to a folder of Stable Diffusion for sampling alone, by keys of `config.sample`.

    lora = "style.safetensors@0.8 | line.safetensors"   files, each with a scale, merged
    tokens = "learned_embeds.safetensors"               files of learned tokens
    control = "canny | depth@0.5"                       folders of ControlNets, each with a scale
    control_images = "edges.png | depths"               for each of them an image, or a folder
    image_adapter = "ip-adapter.safetensors@0.6"        an IP-Adapter, with a scale
    image_encoder, image_prompts                        its encoder's folder, and its images
    long_prompts, prompt_weights                        as in `stable_diffusion.tokenizer.Prompts`

No checkpoint depends on them, so that they go with a folder and with a run that it was trained to.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffjax.conditioning.conditions import Conditions
from diffjax.errors import UserError
from diffjax.experiment import prompts
from diffjax.experiment.backbone_keys import NETWORK_FIELDS
from diffjax.experiment.image_files import image_files, read_image, read_low_resolution
from diffjax.files import expanded
from diffjax.inference.sample_conditions import ControlImages, Examples
from diffjax.stable_diffusion import controlnet, learned_tokens, lora_files
from diffjax.stable_diffusion.controlnet import Control
from diffjax.stable_diffusion.folder import Folder
from diffjax.stable_diffusion.tokenizer import Prompts

KEYS = (
    "lora", "tokens", "control", "control_images", "image_adapter", "image_encoder",
    "image_prompts", "long_prompts", "prompt_weights",
)  # fmt: skip


def given(config: Any) -> dict[str, str]:
    """The keys that are set, with their values; {} of another model."""
    defaults = NETWORK_FIELDS["stable_diffusion"]
    sample = config.sample
    return {
        key: sample[key]
        for key in KEYS
        if key in sample and sample[key] != defaults[f"sample.{key}"].default
    }


def refuse(config: Any, doing: str) -> None:
    """Checks that nothing is added where it has no effect.

    Raises:
      UserError: something is.
    """
    for key, value in given(config).items():
        raise UserError(
            f"config.sample.{key} = {value!r} has no effect on {doing}: it is for --mode=sample, "
            "edit, evaluate and plan: leave it out"
        )


def texts(
    config: Any, examples: Callable[[], Examples] | None, *, key: str = "sample.prompt"
) -> list[str]:
    """All texts that are encoded for samples: a key's prompts or the data's, the negative one.

    Args:
      config: complete and checked.
      examples: the source of prompts that the config leaves open.
      key: of the prompts; "" for none.
    """
    found: tuple[str, ...] = ()
    if key:
        section, name = key.split(".")
        found = prompts.read(config[section][name], key=key)
        if not found and examples is not None:
            found = examples().captions
    return [*found, config.sample.negative_prompt]


def extended(config: Any, folder: Folder, texts: Callable[[], Sequence[str]]) -> Folder:
    """A folder with the keys' ControlNets, text encoders and ways of reading prompts.

    What LoRA files change of the U-Net, whose parameters are not read yet, is for `with_weights`.

    Args:
      config: complete and checked.
      folder: of the config, without its U-Net's weights.
      texts: () -> all texts that will be encoded.

    Raises:
      UserError: a file or a folder that can't be read or is for another model, or prompts with
        unbalanced parentheses.
    """
    c = config.sample
    if config.model.inversion != "none":
        refuse(config, "a run with config.model.inversion, whose network encodes its texts")
    if files := _files(config):
        # What a run was trained with, which it is compared by, is the encoders without the files.
        digest = folder.text_digest
        folder = lora_files.merged(folder, files)._replace(text_digest=digest)
    tokens = _parts(c.tokens, key="sample.tokens")
    folder = learned_tokens.with_tokens(folder, learned_tokens.opened(tokens, folder))
    folder = _with_image_adapter(config, folder)
    folder = folder._replace(prompts=Prompts(c.long_prompts, c.prompt_weights))
    folder = folder.with_controls([path for path, _ in _controls(config)])
    if c.long_prompts == "chunks":
        folder = folder._replace(chunks=folder.chunks_of(texts()))
    return folder


def _with_image_adapter(config: Any, folder: Folder) -> Folder:
    c = config.sample
    found = _scaled(c.image_adapter, key="sample.image_adapter")
    if len(found) > 1:
        raise UserError(f"config.sample.image_adapter = {c.image_adapter!r}: expected one file")
    path, scale = found[0] if found else (None, 1.0)
    folder = folder.with_image_adapter(path, c.image_encoder or None)
    if folder.image_adapter is None:
        return folder
    return folder._replace(image_adapter=folder.image_adapter.scaled(scale))


def with_shapes(config: Any, folder: Folder) -> Folder:
    """`extended` for a folder of shapes: ControlNets with jax.ShapeDtypeStruct for weights.

    LoRA files, which are merged, take no memory, and tokens next to none.

    Raises:
      UserError: as `extended`, or prompts in chunks, whose number the prompts decide.
    """
    if config.sample.long_prompts == "chunks":
        raise UserError(
            "config.sample.long_prompts = 'chunks' has no effect on --mode=plan, which encodes no "
            "prompts: leave it out"
        )
    if adapter := config.sample.image_adapter:
        raise UserError(
            f"config.sample.image_adapter = {adapter!r}: --mode=plan counts no image adapters: "
            "leave it out"
        )
    _files(config)
    made, channels = [], folder.unet.latent_channels
    for path, _ in _controls(config):
        place = expanded(path, name="config.sample.control")
        module = controlnet.read(place, folder.unet.module, latent_channels=channels)
        made.append(Control(module, controlnet.shapes(module, channels), place.name))
    return folder._replace(controls=tuple(made))


def with_weights(config: Any, folder: Folder, params: Any) -> Any:
    """The parameters of `folder.network` from the U-Net's, with LoRA files merged into them.

    Args:
      config: complete and checked.
      folder: what `extended` returned.
      params: the U-Net's.

    Raises:
      UserError: as `extended`.
    """
    alone = folder._replace(params=params)
    del params
    if files := _files(config):
        # Encoders without parameters are not merged again.
        texts = tuple(part._replace(params=None) for part in alone.texts)
        alone = lora_files.merged(alone._replace(texts=texts), files)
    return alone.network_params


def control_images(config: Any, controls: int, shape: tuple[int, ...]) -> ControlImages | None:
    """The images of ControlNets, at a size; None for a model without any.

    Args:
      config: complete and checked.
      controls: number of ControlNets of the model.
      shape: (H, W, C) of the samples.

    Raises:
      UserError: images without a ControlNet or the reverse, or files that can't be read.
    """
    text = config.sample.get("control_images", "")
    scales = tuple(scale for _, scale in _controls(config))
    if not controls or not scales:  # `diffjax.load` is given its images later
        if text:
            raise UserError(
                f"config.sample.control_images = {text!r}, and there is no ControlNet: give its "
                "folder by config.sample.control"
            )
        return None
    places = _parts(text, key="sample.control_images")
    if len(places) != controls:
        raise UserError(
            f"config.sample.control_images = {text!r}: expected an image file, or a folder of "
            f"them, for each of the {controls} ControlNets of config.sample.control, separated by "
            "'|'"
        )
    key = "sample.control_images"
    images = tuple(
        np.stack([read_image(path, shape, key=key)[0] for path in image_files(place, key=key)])
        for place in places
    )
    return ControlImages(images, scales)


def image_prompts(config: Any, conditions: Conditions) -> np.ndarray | None:
    """The embeddings of the images of an image adapter, float32 (n, D); None for none.

    Raises:
      UserError: images without an adapter or the reverse, or files that can't be read.
    """
    text, key = config.sample.get("image_prompts", ""), "sample.image_prompts"
    if conditions.image_prompt is None or not config.sample.get("image_adapter", ""):
        if text:
            raise UserError(
                f"config.{key} = {text!r}, and there is no image adapter: give its file by "
                "config.sample.image_adapter"
            )
        return None
    files = image_files(text, key=key)
    images = [read_low_resolution(path, 3, key=key) for path in files]
    return np.concatenate([conditions.image_prompt(image[None]) for image in images])


def provenance(config: Any) -> dict[str, Any]:
    """The keys that are set, and checksums of LoRA's and tokens' files: JSON for a sample."""
    made: dict[str, Any] = dict(given(config))
    for key in ("lora", "tokens", "image_adapter"):
        files = [expanded(path) for path, _ in _scaled(made.get(key, ""), key=f"sample.{key}")]
        if files:
            made[f"{key}_crc32"] = [zlib.crc32(path.read_bytes()) for path in files]
    return made


def _files(config: Any) -> tuple[lora_files.File, ...]:
    pairs: list[Any] = _scaled(config.sample.get("lora", ""), key="sample.lora")
    return lora_files.opened(pairs)


def _controls(config: Any) -> list[tuple[str, float]]:
    return _scaled(config.sample.get("control", ""), key="sample.control")


def _parts(text: str, *, key: str) -> list[str]:
    parts = [part.strip() for part in text.split("|")] if text.strip() else []
    if not all(parts):
        raise UserError(f"config.{key} = {text!r}: one of the paths is empty: remove a '|'")
    return parts


def _scaled(text: str, *, key: str) -> list[tuple[str, float]]:
    """Paths with their scales, "PATH" or "PATH@scale", separated by "|"."""
    found = []
    for part in _parts(text, key=key):
        path, at, number = part.rpartition("@")
        if not at or expanded(part).exists():
            found.append((part, 1.0))
            continue
        try:
            scale = float(number)
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            raise UserError(
                f"config.{key} = {text!r}: {number!r} is no scale: write PATH or PATH@0.8"
            )
        found.append((path, scale))
    return found
