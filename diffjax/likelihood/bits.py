"""Bits per dimension, and their mean over a data set with its standard error."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffjax.checks import checked
from diffjax.types import ArrayLike, Numbers


class Summary(NamedTuple):
    """A mean over images.

    Attributes:
      mean: of the images' values.
      standard_error: of that mean; NaN for a single image, which tells nothing of the spread.
      count: the number of images.
    """

    mean: float
    standard_error: float
    count: int  # type: ignore[assignment]  # tuple.count, which nobody asks of it


@checked
def bits_per_dim(nats: Numbers, *, dimensions: int) -> Numbers:
    """nats / (dimensions log 2): an image's negative log likelihood in bits per dimension.

    Args:
      nats: of whole images, of any shape.
      dimensions: the number of an image's values, H W C.

    Raises:
      ValueError: fewer than 1 dimension.

    >>> round(bits_per_dim(784 * math.log(2), dimensions=784), 6)
    1.0
    """
    if dimensions < 1:
        raise ValueError(f"dimensions must be at least 1, not {dimensions}")
    return nats / (dimensions * math.log(2))


@checked
def summarise(per_image: ArrayLike | Sequence[float]) -> Summary:
    """The mean over images, and its standard error std / sqrt(count), std with count - 1 below.

    In float64 whatever the type of the values.

    Args:
      per_image: (count,) values, one an image.

    Raises:
      ValueError: no values, or not one an image.

    >>> import diffjax as dj
    >>> found = dj.likelihood.summarise([1.0, 2.0, 3.0])
    >>> print(found.mean, round(found.standard_error, 3), found.count)  # 1 / sqrt(3)
    2.0 0.577 3
    """
    values = np.asarray(per_image, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"summarise needs one value an image, (count,), not {values.shape}")
    count = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Summary(float(values.mean()), error, count)
