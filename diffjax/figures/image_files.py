"""Pictures as PNG and GIF files."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

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
    picture = _as_pillow(array)
    info = PngInfo()
    for keyword, value in (text or {}).items():
        info.add_itxt(keyword, value)
    atomic_write(path, lambda file: picture.save(file, format="PNG", optimize=True, pnginfo=info))


def png_text(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that a PNG file carries, by keyword; none if it is no readable PNG.

    Raises:
      UserError: the file can't be opened.
    """
    try:
        content = Path(path).read_bytes()
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
    milliseconds: int,
    hold_last: int,
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
    if len(frames) == 0:
        raise UserError("got no frames for a GIF; expected one or more; draw at least one")
    shapes = sorted({np.shape(frame) for frame in frames})
    if len(shapes) > 1:
        raise UserError(
            f"got GIF frames of shapes {shapes[0]} and {shapes[1]}; expected one shape; "
            "draw all frames with the same shape"
        )
    if min(milliseconds, hold_last) < SHORTEST_FRAME_MILLISECONDS:
        raise UserError(
            f"got GIF frame times {milliseconds} and {hold_last} ms; expected "
            f"{SHORTEST_FRAME_MILLISECONDS} ms or more, since browsers slow down shorter ones; "
            "use fewer frames"
        )
    pictures = [_as_gif_frame(frame) for frame in frames]
    durations = [round(milliseconds, -1)] * (len(pictures) - 1) + [round(hold_last, -1)]
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


def _as_pillow(array: npt.NDArray[np.uint8]) -> Image.Image:
    array = np.asarray(array)
    drawable = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3))
    if array.dtype != np.uint8 or not drawable or array.size == 0:
        raise UserError(
            f"got a picture of dtype {array.dtype} and shape {array.shape}; expected uint8 "
            "(H, W), (H, W, 1) or (H, W, 3); convert floats in [-1, 1] with to_uint8"
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _as_gif_frame(array: npt.NDArray[np.uint8]) -> Image.Image:
    picture = _as_pillow(array)
    # No dithering: it would add noise to pictures of noise.
    return picture if picture.mode == "L" else picture.quantize(256, dither=Image.Dither.NONE)
