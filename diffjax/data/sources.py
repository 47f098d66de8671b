"""Data sources: random access to uint8 images, int32 labels and, in some sets, captions.

Images are uint8 in [0, 255], height first and channels last. The mapping to float32 in [-1, 1]
happens on the device, so that a batch on the host takes a quarter of the memory. A source may also
hold floating-point arrays of any shape, which are x_0 without scaling.

An example holds its caption as an index into the source's `captions`, the distinct texts, sorted:
batches stay arrays, and each text is encoded only once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from diffjax import arguments
from diffjax.errors import UserError

UNLABELLED = -1


def number_captions(texts: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns (the distinct texts, sorted; each text's index among them, int32 (N,)).

    >>> number_captions(["a dog", "a cat", "a dog"])
    (('a cat', 'a dog'), array([1, 0, 1], dtype=int32))
    """
    captions = tuple(sorted(set(texts)))
    numbers = {caption: number for number, caption in enumerate(captions)}
    return captions, np.array([numbers[text] for text in texts], np.int32)


def _check_captions(
    captions: Sequence[str], numbers: np.ndarray | None, *, length: int, name: str
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Returns (captions, int32 numbers or None), or raises UserError if they do not fit."""
    captions = arguments.texts("captions", captions)
    if numbers is not None:
        numbers = arguments.array("caption_numbers", numbers, expected="integers (N,)")
    if not captions and numbers is None:
        return (), None
    if not captions or numbers is None:
        raise UserError(
            f"{name}: {'captions' if captions else 'caption_numbers'} without "
            f"{'caption_numbers' if captions else 'captions'}; give both or neither"
        )
    if list(captions) != sorted(set(captions)):
        raise UserError(
            f"{name}: the captions are not distinct and sorted; make them with number_captions"
        )
    if numbers.shape != (length,) or not np.issubdtype(numbers.dtype, np.integer):
        raise UserError(
            f"{name}: caption_numbers are {numbers.dtype} {numbers.shape}; "
            f"expected one integer per image, ({length},)"
        )
    if numbers.min() < 0 or numbers.max() >= len(captions):
        raise UserError(
            f"{name}: caption_numbers are in [{numbers.min()}, {numbers.max()}]; expected "
            f"[0, {len(captions) - 1}] for the {len(captions)} captions"
        )
    return captions, numbers.astype(np.int32, copy=False)


@runtime_checkable
class ImageSource(Protocol):
    """Random access to the images of one split of a data set.

    Attributes:
      name: the name given to `diffjax.data.load`, e.g. "fashion_mnist".
      image_shape: (height, width, channels) of every image, channels 1 or 3; any shape for
        floating-point data.
      dtype: uint8 for images, float32 for other data.
      class_names: the classes in the order of the labels; () if there are no labels.
      captions: the distinct captions of this split, sorted; () if there are none.

    A source may also have `index_crc32`, a checksum of its files' names and sizes, or None: a run
    then goes on with the same files alone, wherever they are. It may have `file_sizes`, a function
    () -> int32 (N, 2) that returns the height and width of each file's image, or None.
    """

    name: str
    image_shape: tuple[int, ...]
    dtype: np.dtype
    class_names: tuple[str, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns example i: {"image": uint8 (H, W, C), "label": int32 scalar, -1 = none}.

        Where there are captions, also "caption": int32 scalar, a number into `captions`.
        """
        ...


def check_source(source: Any, *, name: str = "source") -> None:
    """Raises UserError for what is no `ImageSource`."""
    if isinstance(source, type) or not all(
        hasattr(source, attribute) for attribute in ("__getitem__", "__len__", *_SOURCE)
    ):
        raise UserError(
            f"{name} is {arguments.shown(source)}; expected a data set, of diffjax.data.load or "
            "diffjax.data.as_source"
        )


_SOURCE = ("name", "image_shape", "dtype", "class_names", "captions")


class ArraySource:
    """A data set held in memory.

        rings = ArraySource(points, held_out=ArraySource(other_points))    # float32 (N, 2)

    Attributes:
      images: uint8 (N, H, W, C), or float32 (N, ...).
      held_out: the held-out set, also a source, or None.
      labels: int32 (N,); all -1 if there are no labels.
      caption_numbers: int32 (N,), indices into `captions`; None if there are no captions.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        name: str = "array",
        class_names: tuple[str, ...] = (),
        captions: Sequence[str] = (),
        caption_numbers: np.ndarray | None = None,
        held_out: ImageSource | None = None,
        index_crc32: int | None = None,
    ) -> None:
        """Wraps arrays without copying them.

        Args:
          images: uint8 (N, H, W, C), N > 0, C = 1 or 3; or floating-point (N, ...), stored as
            float32.
          labels: integers (N,) in [0, number of classes), or None if there are none.
          name: the set's name, for messages and logs.
          class_names: the classes in the order of the labels; () if there are none.
          captions: the distinct captions, sorted; () if there are none.
          caption_numbers: integers (N,), indices into `captions`; None if there are none.
          held_out: a source of the same kind for held-out evaluation.
          index_crc32: checksum of the files' names and sizes, or None.

        Raises:
          UserError: the set is empty, the shapes, types, labels or captions are inconsistent, or
            floating-point data is not finite.
        """
        arguments.text("name", name)
        images = arguments.array(
            f"{name}: images", images, expected="uint8 (N, H, W, C) or floats (N, ...)"
        )
        if arguments.is_floating(images.dtype) and images.ndim >= 2:
            images = images.astype(np.float32, copy=False)
            if not np.isfinite(images).all():
                raise UserError(f"{name}: the images or data have values that are not finite")
        elif images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"{name}: images are {images.dtype} {images.shape}; expected uint8 (N, H, W, C), "
                "grey or RGB, or floating-point data (N, ...)"
            )
        if images.size == 0:
            raise UserError(
                f"{name}: images of shape {images.shape}: the set is empty; expected at least one"
            )
        class_names = arguments.texts("class_names", class_names)
        if held_out is not None:
            check_source(held_out, name="held_out")
        if labels is not None:
            labels = arguments.array("labels", labels, expected="integers (N,), or None")
        else:
            labels = np.full(len(images), UNLABELLED, np.int32)
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{name}: labels are {labels.dtype} {labels.shape}; "
                f"expected one integer per image, ({len(images)},)"
            )
        if class_names and (labels.min() < 0 or labels.max() >= len(class_names)):
            raise UserError(
                f"{name}: labels are in [{labels.min()}, {labels.max()}]; expected "
                f"[0, {len(class_names) - 1}] for the {len(class_names)} class names"
            )
        self.name = name
        self.images = images
        self.labels = labels.astype(np.int32, copy=False)
        self.image_shape: tuple[int, ...] = images.shape[1:]
        self.dtype = images.dtype
        self.held_out = held_out
        self.index_crc32 = index_crc32
        self.file_sizes: Callable[[], np.ndarray] | None = None
        self.class_names = class_names
        self.captions, self.caption_numbers = _check_captions(
            captions, caption_numbers, length=len(images), name=name
        )

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.images)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns example i: {"image": uint8 (H, W, C), "label": int32 scalar, -1 = none}.

        Where there are captions, also "caption": int32 scalar, a number into `captions`.
        """
        return self.take(i)

    def take(self, rows: SupportsIndex | np.ndarray) -> dict[str, Any]:
        """Returns one example, or for int (B,) `rows` a batch with a leading dimension B."""
        examples = {"image": self.images[rows], "label": self.labels[rows]}
        if self.caption_numbers is not None:
            examples["caption"] = self.caption_numbers[rows]
        return examples


class StreamedSource:
    """A data set too large for memory: images are read and decoded on access."""

    def __init__(
        self,
        read: Callable[[int], tuple[np.ndarray, int]],
        *,
        length: int,
        image_shape: tuple[int, int, int],
        name: str,
        class_names: tuple[str, ...] = (),
        captions: Sequence[str] = (),
        caption_numbers: np.ndarray | None = None,
        index_crc32: int | None = None,
    ) -> None:
        """Wraps a function that reads one example.

        Args:
          read: i in [0, length) to (uint8 (H, W, C), label); must be thread-safe.
          length: the number of examples.
          image_shape: (H, W, C) of every image.
          name: the set's name, for messages and logs.
          class_names: the classes in the order of the labels; () if there are none.
          captions: the distinct captions, sorted; () if there are none.
          caption_numbers: integers (length,), indices into `captions`; None if there are none.
          index_crc32: checksum of the files' names and sizes, or None.

        Raises:
          UserError: the set is empty, or the captions are inconsistent.
        """
        arguments.text("name", name)
        arguments.function("read", read)
        if arguments.whole("length", length) == 0:
            raise UserError(f"{name}: the set is empty; expected at least one image")
        sides = arguments.wholes("image_shape", image_shape)
        if len(sides) != 3 or min(sides) < 1 or sides[-1] not in (1, 3):
            raise UserError(f"image_shape is {sides}; expected (H, W, C), C = 1 or 3")
        self._read = read
        self.index_crc32 = index_crc32
        self.file_sizes: Callable[[], np.ndarray] | None = None
        self._length = int(length)
        self.name = name
        self.image_shape: tuple[int, ...] = sides
        self.dtype = np.dtype(np.uint8)
        self.class_names = arguments.texts("class_names", class_names)
        self.captions, self._caption_numbers = _check_captions(
            captions, caption_numbers, length=length, name=name
        )

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self._length

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns example i: {"image": uint8 (H, W, C), "label": int32 scalar, -1 = none}.

        Where there are captions, also "caption": int32 scalar, a number into `captions`.

        Raises:
          IndexError: i is outside [-length, length).
          UserError: the image cannot be read or has another shape than `image_shape`.
        """
        index = range(self._length)[i]
        image, label = self._read(index)
        if image.shape != self.image_shape:
            raise UserError(
                f"{self.name}: example {index} is {image.shape}, expected {self.image_shape}; "
                "set --config.data.image_size to bring all images to one size"
            )
        example = {"image": image, "label": np.int32(label)}
        if self._caption_numbers is not None:
            example["caption"] = self._caption_numbers[index]
        return example
