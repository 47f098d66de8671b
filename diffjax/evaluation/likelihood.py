"""Bits per dimension of a test set: the mean over images, and its standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from diffjax.errors import UserError
from diffjax.likelihood.bits import summarise
from diffjax.progress import Bar

# (batch, indices of its images) -> values of each image by name, including "total"
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
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Bits per dimension over a split, in order, with a progress bar.

    Args:
      measure: called with batches of one size, the last one padded with its first images.
      test: {"image": uint8 (H, W, C), "label": ...} by index.
      what: description of `measure`'s total.
      split: the name of the split.
      num_images: number of images, evenly spaced over the split; 0 for all.
      batch_size: images per batch.

    Returns:
      A report serialisable as JSON ("bits_per_dim", "standard_error", "images", the mean of each
      part, "counted": the definition of the value, "seconds") and each image's values, with
      "index".

    Raises:
      UserError: a value that is not finite.
    """
    count = min(num_images or len(test), len(test))
    index = np.arange(count) * len(test) // count
    size = min(batch_size, count)
    began = time.monotonic()
    parts: list[Mapping[str, np.ndarray]] = []
    with Bar("likelihood", count) as bar:
        for start in range(0, count, size):
            rows = index[start : start + size]
            filled = np.resize(rows, size)  # one compiled shape
            examples = [test[int(row)] for row in filled]
            batch = {
                "image": np.stack([example["image"] for example in examples]),
                "label": np.array([example["label"] for example in examples], np.int32),
            }
            values = measure(batch, filled.astype(np.int32))
            parts.append({name: np.asarray(x)[: len(rows)] for name, x in values.items()})
            so_far = np.concatenate([part["total"] for part in parts])
            bar(start + len(rows), f"{so_far.mean():.4f} bits/dim")
    each = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    invalid = int((~np.isfinite(each["total"])).sum())
    if invalid:
        raise UserError(
            f"{invalid} of {count} images have no finite likelihood: the model's estimates are not "
            "finite, or the ODE solver did not reach its tolerance: raise rtol and atol, or use "
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
