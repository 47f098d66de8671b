"""scikit-learn's handwritten digits: 1,797 images of 8x8, bundled with the library.

They need no download and train in a minute: for smoke tests and experiments, not for benchmarks.
"""

from __future__ import annotations

import numpy as np

from diffjax.data.images import Size, convert_array, height_width
from diffjax.data.sources import ArraySource
from diffjax.errors import UserError

SPLITS = ("train", "test")
LARGEST_SIDE = 256  # the 1,437 resized images are always held in memory


def load_digits(
    *, split: str = "train", image_size: Size | None = None, channels: int | None = None
) -> ArraySource:
    """Loads the digits: 1,437 in "train", and 360, every fifth, in "test".

    The stored values 0..16 are scaled to 0..255 and rounded.

    Args:
      split: "train" or "test".
      image_size: side of the square images, or (height, width); None keeps 8.
      channels: 1 or 3; None keeps 1.

    Returns:
      uint8 (8, 8, 1) images with labels 0..9.

    Raises:
      UserError: another split, a size above `LARGEST_SIDE`, or scikit-learn is not installed.
    """
    if split not in SPLITS:
        raise UserError(f"digits has no split {split!r}; expected one of {', '.join(SPLITS)}")
    if image_size is not None and max(height_width(image_size)) > LARGEST_SIDE:
        raise UserError(
            f"image_size is {image_size}; expected at most {LARGEST_SIDE} for digits, which are 8x8"
        )
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UserError(
            "digits needs scikit-learn, which is not installed; run pip install scikit-learn"
        ) from error
    digits = datasets.load_digits()
    rows = (np.arange(len(digits.images)) % 5 == 0) == (split == "test")
    images = np.rint(digits.images[rows, :, :, None] * (255 / 16)).astype(np.uint8)
    return ArraySource(
        convert_array(images, image_size=image_size, channels=channels),
        digits.target[rows].astype(np.int32),
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
    )
