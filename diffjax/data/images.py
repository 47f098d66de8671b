"""Decoding of image files to uint8 pixels.

Every file becomes uint8 (H, W, C) with C = 1 (grey) or 3 (RGB): 16-bit grey is scaled, palettes
and CMYK are converted, transparency is composited on white, and the EXIF orientation is applied.
Animations and corrupt files raise `UnreadableImage`.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")

# The side of square images, or (height, width), in pixels.
Size = int | tuple[int, int]

_GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I")
_ORIENTATION = 0x0112

# Pillow's exceptions for corrupt files differ by format.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


# Chunks of a PNG that do not change its pixels and may be larger than Pillow accepts.
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_PNG_START = b"\x89PNG\r\n\x1a\n"


class UnreadableImage(Exception):
    """The bytes are not one still image; the message is the reason."""


def height_width(size: Size) -> tuple[int, int]:
    """(height, width) of a size."""
    return size if isinstance(size, tuple) else (size, size)


def open_still(file: BinaryIO) -> Image.Image:
    """Opens a PNG, JPEG or WebP and reads its header; the pixels are not decoded yet.

    A PNG whose texts or colour profile are larger than Pillow accepts is read without them.

    Args:
      file: open for reading, at its start; stays open for decoding.

    Raises:
      UnreadableImage: not an image, an unsupported format, an animation, or more pixels than
        Pillow's limit, `Image.MAX_IMAGE_PIXELS`.
    """
    try:
        if not file.read(1):
            raise UnreadableImage("the file is empty")
        file.seek(0)
        image = _open(file)
    except UnidentifiedImageError as error:
        raise UnreadableImage("not a PNG, JPEG or WebP image") from error
    except _DECODE_ERRORS as error:
        raise UnreadableImage(str(error)) from error
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UnreadableImage(f"{image.width}x{image.height} is over {limit} pixels")
    # A camera's JPEG may have a preview as a second frame (MPO); the first is the image.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UnreadableImage("it is animated")
    return image


def _open(file: BinaryIO) -> Image.Image:
    """Pillow's open, without large texts."""
    try:
        return Image.open(file, formats=FORMATS)
    except ValueError as error:
        file.seek(0)
        data = file.read()
        if not _has_large_texts(data, error):
            raise
        return Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS)


def _has_large_texts(data: bytes, error: Exception) -> bool:
    """Whether Pillow refused a PNG for the size of its texts or colour profile."""
    said = str(error)
    return data.startswith(_PNG_START) and ("too large" in said or "Too much memory" in said)


def _without_texts(data: bytes) -> bytes:
    """A PNG without the chunks _PNG_TEXTS; what follows a malformed chunk is kept as it is."""
    parts, at = [data[:8]], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + length
        if data[at + 4 : at + 8] not in _PNG_TEXTS:
            parts.append(data[at:end])
        at = end
    return b"".join(parts)


def is_grey(image: Image.Image) -> bool:
    """Returns whether an opened image has no colour channels."""
    return image.mode in _GREY_MODES


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (height, width) after applying the EXIF orientation."""
    if "exif" in image.info and image.getexif().get(_ORIENTATION, 1) >= 5:
        return image.width, image.height
    return image.height, image.width


def _flatten(image: Image.Image) -> Image.Image:
    """Returns the image as mode L or RGB, upright, without transparency."""
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # 65535 / 257 = 255: the whole range of 16 bits onto the whole range of 8.
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip((values + 128) // 257, 0, 255).astype(np.uint8))
    grey = is_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        # R = G = B here, and converting by luma weights would only add rounding.
        return image.getchannel(0) if grey else image
    return image.convert("L" if grey else "RGB")


def fit(image: Image.Image, *, image_size: Size | None, channels: int | None) -> np.ndarray:
    """Converts an L or RGB image to a size and a number of channels.

    With `image_size` the largest centred part of its proportions is resampled (bicubic,
    antialiased): a resize and a centre crop in one pass over the pixels.

    Args:
      image: mode L or RGB.
      image_size: side of the square result or its (height, width), in pixels; None keeps the
        image's own size.
      channels: 1 (luma) or 3; None keeps the image's own.

    Returns:
      uint8 (H, W, C).
    """
    if channels is not None:
        mode = "L" if channels == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
    if image_size is not None:
        height, width = height_width(image_size)
        if image.size != (width, height):
            image = image.resize(
                (width, height), Image.Resampling.BICUBIC, box=_centre(image.size, height, width)
            )
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _centre(size: tuple[int, int], height: int, width: int) -> tuple[float, float, float, float]:
    """The largest centred box of the proportions height : width within (width, height) `size`."""
    w, h = size
    if w * height > h * width:
        inner_w, inner_h = h * width / height, float(h)
    else:
        inner_w, inner_h = float(w), w * height / width
    left, top = (w - inner_w) / 2, (h - inner_h) / 2
    return left, top, left + inner_w, top + inner_h


def decode(
    data: bytes, *, image_size: Size | None = None, channels: int | None = None
) -> np.ndarray:
    """Decodes a PNG, JPEG or WebP.

    Args:
      data: the file's bytes.
      image_size: as in `fit`.
      channels: 1 or 3; None gives 1 for a grey image, else 3.

    Returns:
      uint8 (H, W, C); read-only.

    Raises:
      UnreadableImage: the bytes are not one whole still image.
    """
    try:
        return _decode(data, image_size, channels)
    except UnreadableImage as error:
        if not _has_large_texts(data, error):
            raise
        return _decode(_without_texts(data), image_size, channels)


def _decode(data: bytes, image_size: Size | None, channels: int | None) -> np.ndarray:
    with open_still(io.BytesIO(data)) as image:
        try:
            image.load()
            return fit(_flatten(image), image_size=image_size, channels=channels)
        except _DECODE_ERRORS as error:
            raise UnreadableImage(str(error) or type(error).__name__) from error


def convert_array(
    images: np.ndarray, *, image_size: Size | None, channels: int | None
) -> np.ndarray:
    """Converts decoded images to a size and a number of channels, as `fit` does.

    Args:
      images: uint8 (N, H, W, C), C = 1 or 3.
      image_size: as in `fit`.
      channels: as in `fit`.

    Returns:
      uint8 (N, H', W', C'); `images` itself if nothing changes.
    """
    _, height, width, depth = images.shape
    same_size = image_size is None or (height, width) == height_width(image_size)
    if same_size and channels in (None, depth):
        return images
    squeezed = images[..., 0] if depth == 1 else images
    return np.stack(
        [fit(Image.fromarray(im), image_size=image_size, channels=channels) for im in squeezed]
    )
