"""Reading labelled image sets, in memory or streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]

READ_BATCH = 500
STREAMED_SAMPLE = 256


class LabelledImages(Protocol):
    """The interface of a labelled data source; `diffjax.data.load` returns one."""

    @property
    def name(self) -> str: ...
    @property
    def image_shape(self) -> tuple[int, ...]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: Any, /) -> Any: ...


def fingerprint(source: LabelledImages) -> str:
    """SHA-256 of the images and labels, independent of their order, in hex.

    In-memory sets are hashed whole. Of streamed sets, 256 evenly spaced examples are hashed, to
    avoid decoding all.

    Args:
      source: a set of at least one image; its name and class names are not hashed.
    """
    count = len(source)
    if hasattr(source, "images"):
        places = np.arange(count)
    else:
        places = np.unique(np.linspace(0, count - 1, STREAMED_SAMPLE).astype(int))
    digests = []
    for start in range(0, len(places), READ_BATCH):
        images, labels = read_examples(source, places[start : start + READ_BATCH])
        digests += [
            hashlib.blake2b(
                image.tobytes() + int(label).to_bytes(4, "little", signed=True)
            ).digest()
            for image, label in zip(images, labels, strict=True)
        ]
    digest = hashlib.sha256(f"{count} {tuple(source.image_shape)}\n".encode())
    digest.update(b"".join(sorted(digests)))
    return digest.hexdigest()


def read_examples(
    source: LabelledImages, indices: npt.NDArray[np.integer[Any]]
) -> tuple[Images, Labels]:
    """Images uint8 (B, H, W, C) and labels int32 (B,) at the given indices of a source."""
    if hasattr(source, "images") and hasattr(source, "labels"):
        return source.images[indices], np.asarray(source.labels[indices], np.int32)
    examples = [source[int(i)] for i in indices]
    images = np.stack([np.asarray(example["image"]) for example in examples])
    return images, np.array([example["label"] for example in examples], np.int32)


def read_in_order(source: LabelledImages, batch_size: int) -> Iterator[tuple[Images, Labels]]:
    """All examples of a source, once, in order; the last batch may be smaller."""
    for start in range(0, len(source), batch_size):
        yield read_examples(source, np.arange(start, min(start + batch_size, len(source))))


def check_labelled(source: LabelledImages) -> None:
    """Raises UserError unless the source has images, and labels of two classes or more.

    A streamed source's labels come with its images; `check_labels` checks them batch by batch.
    """
    if len(source) == 0 or len(source.class_names) < 2:
        raise UserError(
            f"got {source.name} with {len(source)} images in {len(source.class_names)} classes "
            "for the classifier whose features are compared; expected a labelled set of two "
            "classes or more; add labels (one sub-folder a class, or labels.csv)"
        )
    if hasattr(source, "labels"):
        check_labels(np.asarray(source.labels), source)


def check_labels(labels: Labels, source: LabelledImages) -> None:
    """Raises UserError if some of a batch's labels are not among the source's classes."""
    if labels.min() < 0 or labels.max() >= len(source.class_names):
        raise UserError(
            f"got labels from {labels.min()} to {labels.max()} in {source.name}; expected 0 to "
            f"{len(source.class_names) - 1}; label every image with one of the set's classes"
        )
