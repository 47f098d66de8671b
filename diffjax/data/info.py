"""The description of the training data that is saved with a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffjax.data.sources import check_source
from diffjax.errors import UserError


class DataInfo(NamedTuple):
    """A data set without its examples.

    Attributes:
      name: the set's name in the config.
      shape: of one example's array.
      images: whether examples are uint8 images; otherwise float arrays.
      class_names: in the order of the labels; () for none.
      captions: the distinct captions; () for none, and after `from_json`.
      vocabulary: the text network's `Vocabulary` as JSON; "" for none.
      has_captions: whether the set has captions.
      index_crc32: checksum of a folder's file names and sizes; None for other sets and older runs.
      embedding: `image_embedding.Fitted` of its images as JSON; "" for none.
    """

    name: str
    shape: tuple[int, ...]
    images: bool = True
    class_names: tuple[str, ...] = ()
    captions: Sequence[str] = ()
    vocabulary: str = ""
    has_captions: bool = False
    index_crc32: int | None = None
    embedding: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields but the captions, as saved with a run."""
        kept = self._asdict() | {"shape": list(self.shape), "class_names": list(self.class_names)}
        del kept["captions"]
        return kept

    @classmethod
    def from_json(cls, stored: Any) -> DataInfo:
        """The inverse of `to_json`, without captions.

        Raises:
          UserError: `stored` has another format.
        """
        try:
            shape = tuple(int(n) for n in stored["shape"])
            names = tuple(str(name) for name in stored["class_names"])
            words = str(stored["vocabulary"])
            return cls(
                str(stored["name"]), shape, bool(stored["images"]), names, (), words,
                bool(stored["has_captions"]), stored.get("index_crc32"),
                str(stored.get("embedding", "")),
            )  # fmt: skip
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(
                f"the description of the training data can't be read ({error!r}): use another "
                "checkpoint"
            ) from error


def describe(source: Any) -> DataInfo:
    """The description of a source.

    Raises:
      UserError: what is no source.
    """
    check_source(source)
    return DataInfo(
        source.name,
        tuple(source.image_shape),
        np.dtype(source.dtype) == np.uint8,
        tuple(source.class_names),
        tuple(source.captions),
        has_captions=bool(source.captions),
        index_crc32=getattr(source, "index_crc32", None),
    )
