"""User-defined data sets: any object with `__len__` and `__getitem__`.

    class Tones:                                  # float32 (L, C) arrays in two classes
        class_names = ("sine", "square")

        def __len__(self): return 1000
        def __getitem__(self, i): return {"x_0": tone(i), "label": i % 2}

        held_out = None                           # or another such object

An example is an array or a dictionary: "image", uint8 (H, W, C), or "x_0", floating-point of any
shape and used without scaling; and optionally "label", an integer, -1 for none, and "caption", an
index into the object's `captions`. `class_names`, `captions` and `held_out` are optional.

A config names a function or class that returns such an object. It is called with the arguments in
its parentheses and with those of `config.data`'s `dir` (a path), `image_size` and `channels`
(integers) that are set; one that it has no parameter for is an error.

    def pictures(dir="data/mine", image_size=64): ...     # config.data.name = "mine:pictures"
"""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np

from diffjax import arguments
from diffjax.data.sources import UNLABELLED, ArraySource, ImageSource
from diffjax.errors import UserError

_ARRAYS = ("image", "x_0")


class OwnSource:
    """An `ImageSource` that wraps a user's object and checks its examples.

    Attributes:
      held_out: the wrapped held-out set, or None.
    """

    def __init__(self, found: Any, *, name: str) -> None:
        """Reads one example for the shape.

        Raises:
          UserError: an empty set, or an invalid example.
        """
        self.name = name
        self._found = found
        self.class_names: tuple[str, ...] = tuple(map(str, getattr(found, "class_names", ())))
        self.captions: tuple[str, ...] = tuple(getattr(found, "captions", ()))
        held_out = getattr(found, "held_out", None)
        self.held_out = None if held_out is None else as_source(held_out, name=f"{name}.held_out")
        if len(self) == 0:
            raise UserError(f"{name}: the set is empty; expected at least one example")
        first = self._array(self._example(0), 0)
        self.image_shape: tuple[int, ...] = first.shape
        self.dtype = first.dtype

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._found)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        """Returns example i, as in `ImageSource`.

        Raises:
          IndexError: i is out of range.
          UserError: an example of another shape or dtype than example 0, or an invalid label or
            caption.
        """
        index = range(len(self))[i]
        example = self._example(index)
        array = self._array(example, index)
        if array.shape != self.image_shape or array.dtype != self.dtype:
            raise UserError(
                f"{self.name}: example {index} is {array.dtype} {array.shape}; expected "
                f"{self.dtype} {self.image_shape} as example 0"
            )
        label = self._whole(example.get("label", UNLABELLED), f"example {index}: its label")
        if self.class_names and not UNLABELLED <= label < len(self.class_names):
            raise UserError(
                f"{self.name}: example {index} has the label {label}; expected 0.."
                f"{len(self.class_names) - 1}, an index into class_names, or -1 for none"
            )
        made: dict[str, Any] = {"image": array, "label": np.int32(label)}
        if self.captions:
            caption = example.get("caption", UNLABELLED)
            caption = self._whole(caption, f"example {index}: its caption")
            if not 0 <= caption < len(self.captions):
                raise UserError(
                    f"{self.name}: example {index} has no 'caption' in 0..{len(self.captions) - 1},"
                    " an index into the set's captions"
                )
            made["caption"] = np.int32(caption)
        return made

    def _whole(self, value: Any, what: str) -> int:
        """An integer, or a floating-point one without a fraction, as tables have."""
        found = np.asarray(value)
        if found.size != 1 or found.dtype.kind not in "biuf" or (found % 1).any():
            raise UserError(f"{self.name}: {what} is {value!r}; expected a whole number")
        return int(found.reshape(()))

    def _example(self, index: int) -> dict[str, Any]:
        try:
            example = self._found[index]
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.name}: example {index}: {type(error).__name__}: {error}"
            ) from error
        return example if isinstance(example, dict) else {"x_0": example}

    def _array(self, example: dict[str, Any], index: int) -> np.ndarray:
        keys = [name for name in _ARRAYS if name in example]
        if len(keys) != 1:
            raise UserError(
                f"{self.name}: example {index} has {', '.join(map(repr, example)) or 'nothing'}; "
                "expected an array, or a dictionary with 'image' (uint8) or 'x_0' (float)"
            )
        array = np.asarray(example[keys[0]])
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] in (1, 3):
            return array
        if not np.issubdtype(array.dtype, np.floating) or array.ndim == 0:
            raise UserError(
                f"{self.name}: example {index} is {array.dtype} {array.shape}; expected a uint8 "
                "image (H, W, 1 or 3), or floating-point data of any shape but ()"
            )
        return array.astype(np.float32)


def as_source(found: Any, *, name: str) -> ImageSource:
    """A user's object as a source.

    Args:
      found: an array, an `ArraySource`, or an object as described in this module.
      name: for messages.

    Raises:
      UserError: an object of another type.
    """
    arguments.text("name", name)
    if hasattr(found, "dtype") and hasattr(found, "ndim"):  # NumPy's, or JAX's
        return ArraySource(found, name=name)
    if isinstance(found, ArraySource):
        found.name = name if found.name == "array" else found.name
        return found
    if isinstance(found, OwnSource):
        return found
    is_set = not isinstance(found, type | str | bytes)
    if is_set and hasattr(found, "__len__") and hasattr(found, "__getitem__"):
        return OwnSource(found, name=name)
    raise UserError(
        f"{name} is {arguments.shown(found)}; expected an array, a diffjax.data.ArraySource, or an "
        "object with __len__ and __getitem__"
    )
