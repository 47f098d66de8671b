"""`config.model.folder`: Stable Diffusion from a folder that diffusers wrote.

    config.model.name = "stable_diffusion"
    config.model.folder = "path/to/stable-diffusion-v1-5"

or from one file of the original layout, with `config.model.tokenizer` and `prediction`.

The network, the first stage and the text encoders are the folder's. A key that is "folder" gets the
value of the folder's files by `settled`, after which a config reads as any other.
"""

from pathlib import Path
from typing import Any

from diffjax.data.info import DataInfo
from diffjax.errors import UserError
from diffjax.experiment import schema
from diffjax.experiment.backbones import ATTENTIONS, DTYPES, REMATS
from diffjax.experiment.spec import from_table
from diffjax.files import expanded
from diffjax.stable_diffusion import scheduler, sources, unet, vae
from diffjax.stable_diffusion.folder import (
    INDEX,
    Folder,
    is_folder,
    load_folder,
    shapes_of_folder,
)
from diffjax.stable_diffusion.sources import is_file

NAME = "stable_diffusion"
FOLDER = "folder"
NO_DATA = "none"
# The scales of diffusers' pipelines.
SCALE, XL_SCALE = 7.5, 5.0
# Keys that the folder decides, and the only value that they may have.
_FIXED: dict[str, Any] = {
    "condition.text": FOLDER,
    "condition.map": "none",
    "condition.keep_map": False,
    "condition.embedding": "none",
    "data.embedding": "none",
    "first_stage.workdir": "",
    "model.class_conditional": False,
    "diffusion.objective": "squared_error",
    "diffusion.self_conditioning": 0.0,
    "diffusion.pairs": "none",
    "diffusion.augment": "none",
}


def is_named(config: Any) -> bool:
    """Whether a config's network is that of a folder."""
    return schema.is_diffusion(config) and config.model.name == NAME


def settled(config: Any) -> Any:
    """A config with the folder's settings in the place of "folder" and of open sizes.

    Reads the folder's small files alone. Any other config is returned as it is.

    Args:
      config: complete and checked.

    Raises:
      UserError: no such folder, one that is not supported, or a key that contradicts it.
    """
    if not is_named(config):
        return config
    path = _path(config)
    for key, value in _FIXED.items():
        section, name = key.split(".")
        if (found := config[section][name]) != value:
            raise UserError(
                f"config.{key} = {found!r}: config.model.folder has its own network, first stage "
                f"and text encoders: set it to {value!r}"
            )
    given = sources.given(path, **_of_file(config), section="config.model.")
    network = unet.read(path / "unet")
    size = (given.side, given.side) if given.side else network.size
    stage, _ = vae.read(path / "vae", size=size)
    sampling = scheduler.read(path / "scheduler", prediction=given.prediction)
    scale = XL_SCALE if network.module.pooled_width else SCALE
    values = {
        "diffusion.schedule": sampling.schedule,
        "diffusion.parametrisation": sampling.prediction.parametrisation.name,
        "sample.sampler": sampling.sampler,
        "sample.grid": sampling.grid,
        "sample.threshold": sampling.threshold,
        "sample.guidance": f"classifier_free(scale={scale})",
    }
    done = config.copy_and_resolve_references()
    if done.diffusion.schedule == FOLDER and sampling.zero_terminal_snr:
        done.diffusion.zero_terminal_snr = True
    for key, text in values.items():
        section, name = key.split(".")
        if done[section][name] == FOLDER:
            if not text:
                raise UserError(
                    f"config.{key} = {FOLDER!r}: {path / 'scheduler'} lists its betas one by one, "
                    f"which no config does: set config.{key}"
                )
            done[section][name] = text
    height, width, channels = stage.image_shape
    with done.ignore_type():
        done.data.image_size = done.data.image_size or (
            height if height == width else (height, width)
        )
    if done.data.channels not in (0, channels):
        raise UserError(
            f"config.data.channels = {done.data.channels}: the images of {path} have {channels}: "
            "set it to 0"
        )
    done.data.channels = channels
    return done


def read(config: Any) -> Folder:
    """The folder of a config, without its U-Net's weights.

    Raises:
      UserError: no such folder, or one that is not supported or corrupt.
    """
    _check_dtype(config)
    path, dtype = _path(config), config.model.dtype
    return _with_options(config, load_folder(
        path, dtype=dtype, tile=config.first_stage.tile, reads_unet=False, **_of_file(config)
    ))  # fmt: skip


def shapes(config: Any) -> Folder:
    """The folder of a config with jax.ShapeDtypeStruct for weights, of which no file is read.

    Raises:
      UserError: as `read`, of the configs.
    """
    _check_dtype(config)
    path, dtype = _path(config), config.model.dtype
    return _with_options(config, shapes_of_folder(
        path, dtype=dtype, tile=config.first_stage.tile, **_of_file(config)
    ))  # fmt: skip


def _of_file(config: Any) -> dict[str, str | None]:
    """What a file of the original layout does not have; see `sources.given`."""
    c = config.model
    return {"tokenizer": c.tokenizer or None, "prediction": c.prediction or None}


def _check_dtype(config: Any) -> None:
    from_table(config.model.dtype, DTYPES, key="model.dtype")


def _with_options(config: Any, found: Folder) -> Folder:
    """The folder with the config's attention and rematerialisation."""
    c = config.model
    softmax = {"softmax": ATTENTIONS["softmax"]}
    module = found.unet.module.clone(
        attention_fn=from_table(c.attention, softmax, key="model.attention"),
        remat=from_table(c.remat, REMATS, key="model.remat"),
    )
    return found._replace(unet=found.unet._replace(module=module))


def about(config: Any) -> DataInfo:
    """The description of the images of a settled config, of which there need be none."""
    size = config.data.image_size
    sides = size if isinstance(size, tuple) else (size, size)
    name = _path(config).resolve().name
    return DataInfo(name, (*sides, config.data.channels), has_captions=True)


def _path(config: Any) -> Path:
    text = config.model.folder
    if not text:
        raise UserError(
            "config.model.folder is empty: give a folder that diffusers wrote, such as "
            "--config.model.folder=path/to/stable-diffusion-v1-5"
        )
    path = expanded(text, name="config.model.folder")
    if not is_folder(path) and not is_file(path):
        what = f"it has no {INDEX}" if path.is_dir() else "there is no such folder or file"
        if path.is_file():
            what = f"it is no {' or '.join(sources.SUFFIXES)}"
        raise UserError(
            f"config.model.folder = {text!r}: {what}: give a folder that diffusers wrote, or a "
            "file of the original layout"
        )
    return path
