"""The image files of a config, at the model's size."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffjax.data.images import SUFFIXES, UnreadableImage, decode
from diffjax.data.listing import is_hidden, is_image
from diffjax.errors import UserError
from diffjax.files import expanded

if TYPE_CHECKING:
    from diffjax.latent.space import DiffusionSpace

_logger = logging.getLogger("diffjax")


def image_files(name: str, *, key: str) -> list[Path]:
    """The image file `name`, or the image files of the folder `name` in alphabetical order."""
    if not name:
        raise UserError(f"config.{key} is empty: give an image file or a folder of them")
    path = expanded(name)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if is_image(p.name) and not is_hidden(p.name))
        if not found:
            raise UserError(
                f"config.{key} = {name!r} holds no image: expected {', '.join(SUFFIXES)}"
            )
        return found
    if not path.is_file():
        raise UserError(f"config.{key} = {name!r}: there is no such file or folder")
    return [path]


def read_image(
    path: Path, shape: tuple[int, ...], *, key: str
) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels at the model's size, uint8 (H, W, C), and the file's own (height, width)."""
    height, width, channels = shape
    pixels = _decoded(path, key=key, channels=channels)
    size = (pixels.shape[0], pixels.shape[1])
    if size != (height, width):
        pixels = _decoded(path, key=key, channels=channels, image_size=(height, width))
    if size == (height, width):
        return pixels, size
    _logger.info(
        "%s: centre crop of %dx%d, resized to the model's %dx%d", path, *size[::-1], width, height
    )
    return pixels, size


def _decoded(path: Path, *, key: str, **how: Any) -> np.ndarray:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise UserError(f"config.{key}: {path} is not a regular file: expected an image")
        return decode(path.read_bytes(), **how)
    except OSError as error:
        raise UserError(f"config.{key}: {path} can't be read: {error.strerror}") from error
    except UnreadableImage as error:
        raise UserError(f"config.{key}: {path} is not a readable image: {error}") from None


def read_low_resolution(path: Path, channels: int, *, key: str) -> np.ndarray:
    """The pixels of a file of any size: uint8 (h, w, channels).

    Raises:
      UserError: a file of another number of channels, or one that can't be read.
    """
    pixels = _decoded(path, key=key)
    if pixels.shape[-1] != channels:
        kinds = {1: "grey", 3: "RGB"}
        raise UserError(
            f"config.{key}: {path} is {kinds[pixels.shape[-1]]} and the model's images are "
            f"{kinds[channels]}: convert it"
        )
    return pixels


def read_map_images(name: str, space: DiffusionSpace, *, key: str) -> np.ndarray | None:
    """The images that maps are made from: uint8 (n, H, W, C), or None for an empty `name`.

    Raises:
      UserError: a model without maps, or files that can't be read.
    """
    if not name:
        return None
    if not space.map_channels:
        raise UserError(f"config.{key} = {name!r} but the model takes no map: leave it empty")
    files = image_files(name, key=key)
    return np.stack([read_image(path, space.image_shape, key=key)[0] for path in files])
