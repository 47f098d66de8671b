"""Pictures as PNG and GIF files."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.files import atomic_write

# Browsers show shorter frames for 100 ms instead.
SHORTEST_FRAME_MILLISECONDS = 20


def save_png(
    path: str | os.PathLike[str],
    array: npt.NDArray[np.uint8],
    *,
    text: Mapping[str, str] | None = None,
) -> None:
    """Writes one picture as a PNG file, regardless of the path's suffix.

    Args:
      path: the file to create or replace; missing parent folders are made.
      array: uint8 (H, W), (H, W, 1) or (H, W, 3).
      text: texts that the file carries, by keyword; read by `png_text`.

    Raises:
      UserError: another dtype or shape, or a path that cannot be written.
    """
    path, picture = arguments.path("path", path), _as_pillow(array)
    info = PngInfo()
    for keyword, value in _keywords(text).items():
        info.add_itxt(keyword, value)
    atomic_write(path, lambda file: picture.save(file, format="PNG", optimize=True, pnginfo=info))


def png_text(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that a PNG file carries, by keyword; none if it is no readable PNG.

    Raises:
      UserError: the file can't be opened.
    """
    path = arguments.path("path", path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot open {path} ({error.strerror or error}); expected a PNG file; check the path"
        ) from error
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            info = picture.info.items()
            return {k: v for k, v in info if isinstance(k, str) and isinstance(v, str)}
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):  # Pillow's, of other bytes
        return {}


def save_gif(
    path: str | os.PathLike[str],
    frames: Sequence[npt.NDArray[np.uint8]],
    *,
    milliseconds: float,
    hold_last: float,
) -> None:
    """Writes an endlessly looping GIF animation.

    Grey frames are stored exactly; colour ones are reduced to 256 colours each. Times are
    rounded to the format's hundredths of a second.

    Args:
      path: the file to create or replace; missing parent folders are made.
      frames: at least one uint8 (H, W), (H, W, 1) or (H, W, 3), all of one shape.
      milliseconds: how long each frame but the last is shown; 20 or more.
      hold_last: how long the last frame is shown, in milliseconds; 20 or more.

    Raises:
      UserError: no frames, frames of several shapes, another dtype or shape, times under 20 ms,
        or a path that cannot be written.
    """
    path = arguments.path("path", path)
    if isinstance(frames, str | bytes | Mapping) or not hasattr(frames, "__len__"):
        raise UserError(f"frames is {arguments.shown(frames)}: expected a list of pictures")
    milliseconds = arguments.number("milliseconds", milliseconds)
    hold_last = arguments.number("hold_last", hold_last)
    if len(frames) == 0:
        raise UserError("got no frames for a GIF; expected one or more; draw at least one")
    frames = [_checked(frame, "frames") for frame in frames]
    shapes = sorted({frame.shape for frame in frames})
    if len(shapes) > 1:
        raise UserError(
            f"got GIF frames of shapes {shapes[0]} and {shapes[1]}; expected one shape; "
            "draw all frames with the same shape"
        )
    if min(milliseconds, hold_last) < SHORTEST_FRAME_MILLISECONDS:
        raise UserError(
            f"got GIF frame times of {milliseconds:g} and {hold_last:g} ms (milliseconds, "
            "hold_last); expected "
            f"{SHORTEST_FRAME_MILLISECONDS} ms or more, since browsers slow down shorter ones; "
            "use fewer frames"
        )
    pictures = [_as_gif_frame(frame) for frame in frames]
    times = [milliseconds] * (len(pictures) - 1) + [hold_last]
    durations = [int(round(time, -1)) for time in times]
    atomic_write(
        path,
        lambda file: pictures[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
        ),
    )


def _keywords(text: Mapping[str, str] | None) -> Mapping[str, str]:
    if text is None:
        return {}
    of_texts = isinstance(text, Mapping) and all(
        isinstance(word, str) for item in text.items() for word in item
    )
    # Those of the PNG standard: the file would be unreadable with others.
    if not of_texts or not all(0 < len(keyword) < 80 for keyword in text):
        raise UserError(
            f"text is {arguments.shown(text)}: expected texts by keyword, of 1 to 79 letters each"
        )
    return text


def _checked(array: npt.ArrayLike, name: str) -> npt.NDArray[np.uint8]:
    found = arguments.array(name, array, expected="uint8 (H, W), (H, W, 1) or (H, W, 3)")
    drawable = found.ndim == 2 or (found.ndim == 3 and found.shape[-1] in (1, 3))
    if found.dtype != np.uint8 or not drawable or found.size == 0:
        raise UserError(
            f"{name} has a picture of dtype {found.dtype} and shape {found.shape}; expected uint8 "
            "(H, W), (H, W, 1) or (H, W, 3); convert floats in [-1, 1] with to_uint8"
        )
    return found


def _as_pillow(array: npt.NDArray[np.uint8]) -> Image.Image:
    array = _checked(array, "array")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _as_gif_frame(array: npt.NDArray[np.uint8]) -> Image.Image:
    picture = _as_pillow(array)
    # No dithering: it would add noise to pictures of noise.
    return picture if picture.mode == "L" else picture.quantize(256, dither=Image.Dither.NONE)
