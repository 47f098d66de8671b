"""Captions under images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.figures.image_grids import BACKGROUND, INK, check_images
from diffjax.figures.lettering import Lettering

FONT_SIZE = 11
LINE_HEIGHT = 13
MOST_LINES = 4


def captioned(
    images: npt.NDArray[np.uint8], captions: Sequence[str], *, scale: int = 1
) -> npt.NDArray[np.uint8]:
    """Images with their captions below, broken into lines.

    Args:
      images: uint8 (N, H, W, C), C = 1 or 3.
      captions: one per image; cut after four lines with "...".
      scale: every pixel of an image becomes a square of scale x scale pixels.

    Returns:
      uint8 (N, scale H + h, scale W, C), h the same for all.

    Raises:
      UserError: another dtype or shape, or a number of captions that is not that of images.
    """
    images, captions = check_images(images), arguments.texts("captions", captions)
    scale = arguments.whole("scale", scale, least=1)
    if len(captions) != len(images):
        raise UserError(
            f"got {len(captions)} captions for {len(images)} images; expected one per image"
        )
    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
    width, channels = tiles.shape[2], tiles.shape[3]
    lettering = Lettering(list(captions), FONT_SIZE)
    broken = [_lines(caption, lettering, width) for caption in lettering.texts]
    height = LINE_HEIGHT * max(len(lines) for lines in broken) + 2
    below = np.full((len(tiles), height, width, channels), BACKGROUND, np.uint8)
    for row, lines in zip(below, broken, strict=True):
        sheet = Image.new("L", (width, height), BACKGROUND)
        draw = ImageDraw.Draw(sheet)
        for i, line in enumerate(lines):
            y = 1 + i * LINE_HEIGHT
            draw.text((width / 2, y), line, font=lettering.font, fill=INK, anchor="mt")
        row[:] = np.asarray(sheet)[..., None]
    return np.concatenate([tiles, below], axis=1)


def _lines(text: str, lettering: Lettering, width: int) -> list[str]:
    """The text's words in lines that fit the width; longer words are cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and lettering.width(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} ..."]
    return [_cut(line, lettering, width) for line in lines]


def _cut(line: str, lettering: Lettering, width: int) -> str:
    """The line, cut with "-" if it is longer than the width."""
    over = lettering.width(line) / width
    return line if over <= 1 else line[: max(1, math.floor(len(line) / over) - 1)] + "-"
