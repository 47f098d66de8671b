"""Many small images on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.figures.lettering import Lettering

BACKGROUND = 255
INK = 40
MOST_EMS = 14  # width of the column of labels, in sizes of its font


def to_uint8(images: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Maps [-1, 1] to 0..255, halves rounded up, values outside clipped.

    u = floor(127.5 (x + 1) + 1/2), the inverse of x = u / 127.5 - 1.

    Args:
      images: floats of any shape; infinities are clipped like any other value.

    Returns:
      uint8 of the same shape.

    Raises:
      UserError: integers (probably already pixels) or NaN.

    >>> to_uint8([-1.5, -1.0, 0.0, 1.0]).tolist()
    [0, 0, 128, 255]
    """
    values = arguments.array("images", images, expected="floats in [-1, 1]")
    # Not np.floating, which excludes jnp.bfloat16.
    if values.dtype.kind in "biu":
        raise UserError(
            f"got {values.dtype} images; expected floats in [-1, 1]; leave out to_uint8 for pixels"
        )
    values = values.astype(np.float32)
    missing = int(np.isnan(values).sum())
    if missing:
        raise UserError(
            f"got images with {missing} NaN among {values.size} values; expected [-1, 1]; "
            "check whether the model or sampler diverged"
        )
    return np.floor(np.clip(values, -1.0, 1.0) * 127.5 + 128.0).astype(np.uint8)


def check_images(images: npt.ArrayLike, *, name: str = "images") -> npt.NDArray[np.uint8]:
    """The images as an array.

    Raises:
      UserError: anything but uint8 (N, H, W, 1 or 3), N >= 1.
    """
    found = arguments.array(name, images, expected="uint8 (N, H, W, 1 or 3)")
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[-1] not in (1, 3):
        raise UserError(
            f"got {name} of dtype {found.dtype} and shape {found.shape}; expected uint8 "
            "(N, H, W, 1 or 3); convert floats in [-1, 1] with to_uint8"
        )
    if found.size == 0:
        raise UserError(f"got {name} of shape {found.shape}; expected one or more; draw some")
    return found


def image_grid(
    images: npt.NDArray[np.uint8],
    *,
    columns: int | None = None,
    padding: int = 2,
    scale: int = 1,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> npt.NDArray[np.uint8]:
    """Lays images out row by row on a white sheet.

    The image in row r, column c (both from 0) has its top left pixel at
    y = T + padding + r (scale H + padding), x = L + padding + c (scale W + padding), where L is
    the width of the label column and T the height of the label row (0 without labels).

    Args:
      images: uint8 (N, H, W, C), N >= 1, C = 1 or 3.
      columns: images in a row, at most N; None makes the sheet about square.
      padding: white pixels around and between the images, not scaled; 0 or more.
      scale: every pixel becomes a square of scale x scale pixels; 1 or more.
      row_labels: one text for each row, drawn at its left; a long one without its middle.
      column_labels: one text for each column, drawn above it.

    Returns:
      uint8 (H', W', C).

    Raises:
      UserError: another dtype or shape, a size out of its range, or a number of labels that is
        not the number of rows or columns.
    """
    images = check_images(images)
    count, height, width, channels = images.shape
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    columns = min(arguments.whole("columns", columns, least=1), count)
    padding = arguments.whole("padding", padding)
    scale = arguments.whole("scale", scale, least=1)
    rows = math.ceil(count / columns)
    for what, labels, number in (("row", row_labels, rows), ("column", column_labels, columns)):
        if labels is not None:
            labels = arguments.texts(f"{what}_labels", labels)
        if labels is not None and len(labels) != number:
            raise UserError(
                f"got {len(labels)} {what} labels for a grid of {number} {what}s; expected one per "
                f"{what}; correct {what}_labels or columns={columns}"
            )

    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale, width * scale
    sheet = np.full(
        (padding + rows * (height + padding), padding + columns * (width + padding), channels),
        BACKGROUND,
        np.uint8,
    )
    for i, tile in enumerate(tiles):
        y = padding + (i // columns) * (height + padding)
        x = padding + (i % columns) * (width + padding)
        sheet[y : y + height, x : x + width] = tile
    if row_labels is not None:
        left = _label_column(row_labels, sheet.shape[0], tile_height=height, padding=padding)
        sheet = np.concatenate([left.repeat(channels, axis=2), sheet], axis=1)
    if column_labels is not None:
        start = sheet.shape[1] - padding - columns * (width + padding)
        top = _label_row(
            column_labels, sheet.shape[1], start=start, tile_width=width, padding=padding
        )
        sheet = np.concatenate([top.repeat(channels, axis=2), sheet], axis=0)
    return sheet


def _label_column(
    texts: Sequence[str], sheet_height: int, *, tile_height: int, padding: int
) -> npt.NDArray[np.uint8]:
    """Right-aligned texts, each at the middle of its row: uint8 (sheet_height, L, 1)."""
    size = max(8, min(20, round(0.4 * tile_height)))
    lettering = Lettering(list(texts), size)
    gap = max(3, size // 3)
    shown = [lettering.cut(text, MOST_EMS * size) for text in lettering.texts]
    width = math.ceil(max(map(lettering.width, shown))) + 2 * gap
    column = Image.new("L", (width, sheet_height), BACKGROUND)
    draw = ImageDraw.Draw(column)
    # Anchor "rm" is the font's middle, not each text's: labels with descenders stay aligned.
    for row, text in enumerate(shown):
        y = padding + row * (tile_height + padding) + tile_height / 2
        draw.text((width - gap, y), text, font=lettering.font, fill=INK, anchor="rm")
    return np.asarray(column)[..., None]


def _label_row(
    texts: Sequence[str], sheet_width: int, *, start: int, tile_width: int, padding: int
) -> npt.NDArray[np.uint8]:
    """Texts, each over the middle of its column, which begins at `start`: uint8 (T, W, 1)."""
    size = max(8, min(20, round(0.4 * tile_width)))
    lettering = Lettering(list(texts), size)
    while size > 8 and max(map(lettering.width, lettering.texts)) > tile_width:
        size -= 1
        lettering = Lettering(list(texts), size)
    row = Image.new("L", (sheet_width, 2 * size), BACKGROUND)
    draw = ImageDraw.Draw(row)
    for column, text in enumerate(lettering.texts):
        x = start + padding + column * (tile_width + padding) + tile_width / 2
        shown = lettering.cut(text, tile_width + padding)
        draw.text((x, size), shown, font=lettering.font, fill=INK, anchor="mm")
    return np.asarray(row)[..., None]
