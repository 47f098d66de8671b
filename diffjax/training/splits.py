"""The config's data set, split by split."""

import math
from typing import Any

import numpy as np

from diffjax import data

EVAL_IMAGES = 512
EVAL_BATCH = 128
# A test set up to this is decoded whole and kept for the next run; of a larger one only what is
# evaluated is read.
EVAL_DECODED_MB = 64


def load_split(config: Any, split: str, *, memory_limit_mb: int | None = None) -> data.ImageSource:
    """One split of the config's data set.

    Args:
      config: the config.
      split: "train" or "test".
      memory_limit_mb: config.data.memory_limit_mb by default; less for a reader of few images, who
        should not wait for a large set to be decoded.
    """
    c = config.data
    return data.load(
        c.name,
        split=split,
        data_dir=c.dir or None,
        image_size=c.image_size or None,
        channels=c.channels or None,
        memory_limit_mb=c.memory_limit_mb if memory_limit_mb is None else memory_limit_mb,
    )


def load_held_out(config: Any) -> data.ImageSource | None:
    """The test images, or None where there are none."""
    c = config.data
    if not data.has_split(c.name, split="test", data_dir=c.dir or None):
        return None
    return load_split(config, "test", memory_limit_mb=min(EVAL_DECODED_MB, c.memory_limit_mb))


def held_out_batches(source: data.ImageSource) -> list[dict[str, np.ndarray]]:
    """At most EVAL_IMAGES images in batches of one size, each a compiled shape.

    What is left over, at most three images, is left out: a smaller batch would be compiled anew.
    """
    count = min(EVAL_IMAGES, len(source))
    parts = math.ceil(count / EVAL_BATCH)
    size = count // parts
    batch = next(data.batches(source, batch_size=size * parts, seed=0))
    return [
        {name: array[i : i + size] for name, array in batch.items()}
        for i in range(0, size * parts, size)
    ]
