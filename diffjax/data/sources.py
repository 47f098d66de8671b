"""What a data set is: random access to uint8 images and int32 labels.

A source holds images as they are stored, uint8 in [0, 255], height first and channels last.
Whoever trains on them maps them to float32 in [-1, 1]; nothing here does, so a batch costs a
quarter of the memory until it is on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from diffjax.errors import UserError

UNLABELLED = -1


@runtime_checkable
class ImageSource(Protocol):
    """Random access to the images of one split of a data set.

    Attributes:
      name: what `diffjax.data.load` was asked for, e.g. "fashion_mnist".
      image_shape: (height, width, channels) of every image; channels is 1 or 3.
      class_names: the classes in the order of the labels; () when there are no labels.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns example i: {"image": uint8 (H, W, C), "label": int32 scalar, -1 = none}."""
        ...


class ArraySource:
    """A data set that lies whole in memory.

    Attributes:
      images: uint8 (N, H, W, C).
      labels: int32 (N,); all -1 when there are no labels.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        name: str = "array",
        class_names: tuple[str, ...] = (),
    ) -> None:
        """Wraps arrays without copying them.

        Args:
          images: uint8 (N, H, W, C), N > 0, C = 1 or 3.
          labels: integers (N,) in [0, number of classes), or None when there are none.
          name: the set's name, for messages and logs.
          class_names: the classes in the order of the labels; () when there are none.

        Raises:
          UserError: the set is empty, or the shapes, types or labels do not fit together.
        """
        if images.ndim != 4 or images.dtype != np.uint8:
            raise UserError(
                f"{name}: images are {images.dtype} {images.shape}; expected uint8 (N, H, W, C)"
            )
        if images.size == 0:
            raise UserError(f"{name}: the set holds no images; expected at least one")
        if labels is None:
            labels = np.full(len(images), UNLABELLED, np.int32)
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{name}: labels are {labels.dtype} {labels.shape}; "
                f"expected one integer an image, ({len(images)},)"
            )
        if class_names and (labels.min() < 0 or labels.max() >= len(class_names)):
            raise UserError(
                f"{name}: labels lie in [{labels.min()}, {labels.max()}]; expected "
                f"[0, {len(class_names) - 1}] for the {len(class_names)} class names"
            )
        self.name = name
        self.images = images
        self.labels = labels.astype(np.int32, copy=False)
        self.image_shape: tuple[int, int, int] = images.shape[1:]
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.images)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns example i: {"image": uint8 (H, W, C), "label": int32 scalar, -1 = none}."""
        return {"image": self.images[i], "label": self.labels[i]}


class StreamedSource:
    """A data set too large for memory: an image is read and decoded when it is asked for."""

    def __init__(
        self,
        read: Callable[[int], tuple[np.ndarray, int]],
        *,
        length: int,
        image_shape: tuple[int, int, int],
        name: str,
        class_names: tuple[str, ...] = (),
    ) -> None:
        """Wraps a function that reads one example.

        Args:
          read: i in [0, length) to (uint8 (H, W, C), label); called from several threads at once.
          length: the number of examples.
          image_shape: (H, W, C) of every image.
          name: the set's name, for messages and logs.
          class_names: the classes in the order of the labels; () when there are none.

        Raises:
          UserError: the set is empty.
        """
        if length <= 0:
            raise UserError(f"{name}: the set holds no images; expected at least one")
        self._read = read
        self._length = length
        self.name = name
        self.image_shape = image_shape
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self._length

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns example i: {"image": uint8 (H, W, C), "label": int32 scalar, -1 = none}.

        Raises:
          IndexError: i is outside [-length, length).
          UserError: the image cannot be read or has not the shape of the others.
        """
        index = range(self._length)[i]
        image, label = self._read(index)
        if image.shape != self.image_shape:
            raise UserError(
                f"{self.name}: example {index} is {image.shape}, expected {self.image_shape}; "
                "set --config.data.image_size to bring all images to one size"
            )
        return {"image": image, "label": np.int32(label)}
