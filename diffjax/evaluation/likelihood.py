"""Bits per dimension of a test set: the mean over images, and its standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from diffjax.errors import UserError
from diffjax.likelihood.bits import summarise

# (images by key, their numbers) -> numbers of each image by name, "total" among them
Measure = Callable[[Mapping[str, np.ndarray], np.ndarray], Mapping[str, np.ndarray]]
LEVELS = 256


class Images(Protocol):
    """A split of a data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


def evaluate_likelihood(
    measure: Measure,
    test: Images,
    *,
    what: str,
    split: str,
    num_images: int = 0,
    batch_size: int = 250,
    quiet: bool = False,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Bits per dimension over a split, in its own order, with a progress bar.

    Args:
      measure: called with batches of one size, the last of them filled up with its first images.
      test: {"image": uint8 (H, W, C), "label": ...} by index.
      what: what `measure`'s total is, in words.
      split: the name of the split.
      num_images: how many; 0 for all. Fewer are an even choice over the whole split.
      batch_size: images at once.
      quiet: no bar.

    Returns:
      A report that JSON can hold ("bits_per_dim", "standard_error", "images", the mean of each
      part, "counted": what the number counts, "seconds") and each image's numbers, with "index".

    Raises:
      UserError: a number that is not finite.
    """
    count = min(num_images or len(test), len(test))
    index = np.arange(count) * len(test) // count
    size = min(batch_size, count)
    began = time.monotonic()
    often = 1 if sys.stderr.isatty() else 30  # seconds between two lines of a log
    parts: list[Mapping[str, np.ndarray]] = []
    with tqdm(
        total=count, unit="image", dynamic_ncols=True, mininterval=often, disable=quiet
    ) as bar:
        for start in range(0, count, size):
            rows = index[start : start + size]
            filled = np.resize(rows, size)  # one compiled shape
            examples = [test[int(row)] for row in filled]
            batch = {
                "image": np.stack([example["image"] for example in examples]),
                "label": np.array([example["label"] for example in examples], np.int32),
            }
            found = measure(batch, filled.astype(np.int32))
            parts.append({name: np.asarray(x)[: len(rows)] for name, x in found.items()})
            so_far = np.concatenate([part["total"] for part in parts])
            bar.set_postfix_str(f"{so_far.mean():.4f} bits/dim", refresh=False)
            bar.update(len(rows))
    each = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    lost = int((~np.isfinite(each["total"])).sum())
    if lost:
        raise UserError(
            f"{lost} of {count} images have no finite likelihood: the model's estimates are not "
            "finite, or an ODE's tolerance was out of reach: raise its rtol and atol, or take "
            "another config.sample.checkpoint"
        )
    total = summarise(each["total"])
    shape = tuple(int(n) for n in batch["image"].shape[1:])
    means = {name: float(np.mean(x)) for name, x in each.items() if x.ndim == 1 and name != "total"}
    report = {
        "bits_per_dim": total.mean,
        "standard_error": total.standard_error,
        "images": total.count,
        "of": f"{total.count} of the {len(test)} {split} images",
        "what": what,
        "counted": (
            f"-log2 of the probability of {LEVELS} levels a value, over the {int(np.prod(shape))} "
            f"values of {shape[0]}x{shape[1]}x{shape[2]}, without padding or augmentation"
        ),
        "parts": means,
        "seconds": round(time.monotonic() - began, 1),
    }
    return report, {"index": index, **each}
