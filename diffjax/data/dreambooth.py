"""Sets for DreamBooth (Ruiz et al. 2023): one prompt for all images, and images of the class.

Fine-tuning on a few pictures of a subject, all with a prompt such as "a sks dog", makes a model
forget other dogs. Prior preservation (section 3.3) trains on images of the class as well, which the
model drew before: here every second example is one of them.
"""

from __future__ import annotations

import zlib
from typing import Any, SupportsIndex

import numpy as np

from diffjax.data.sources import ImageSource
from diffjax.errors import UserError


class _Set:
    """A set with the attributes of another one."""

    def __init__(self, source: ImageSource, captions: tuple[str, ...]) -> None:
        self.name, self.image_shape, self.dtype = source.name, source.image_shape, source.dtype
        self.class_names = source.class_names
        self.captions = captions
        self.index_crc32 = getattr(source, "index_crc32", None)
        self.file_sizes = getattr(source, "file_sizes", None)


class _Prompted(_Set):
    def __init__(self, source: ImageSource, prompts: tuple[str, ...]) -> None:
        super().__init__(source, prompts)
        self._source = source
        if self.file_sizes is not None and len(prompts) > 1:
            self.file_sizes = self._file_sizes

    def __len__(self) -> int:
        return len(self._source) * len(self.captions)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        row, which = divmod(range(len(self))[i], len(self.captions))
        return self._source[row] | {"caption": np.int32(which)}

    def _file_sizes(self) -> np.ndarray:
        each = self._source.file_sizes()  # type: ignore[attr-defined]
        return np.repeat(each, len(self.captions), axis=0)


def prompted(source: ImageSource, *prompts: str) -> ImageSource:
    """A set of which every image has the same caption, or is there with each of several.

    Raises:
      UserError: it has captions.
    """
    if source.captions:
        raise UserError(
            f"{source.name} has captions, and a prompt for all images was given, {prompts[0]!r}: "
            "leave it empty, or remove the captions"
        )
    return _Prompted(source, prompts)


class _Alternating(_Set):
    def __init__(self, first: ImageSource, second: ImageSource) -> None:
        captions = tuple(sorted({*first.captions, *second.captions}))
        super().__init__(first, captions)
        self._sources = (first, second)
        self._numbers = [
            np.array([captions.index(text) for text in source.captions], np.int32)
            for source in self._sources
        ]
        crcs = [getattr(source, "index_crc32", None) for source in self._sources]
        self.index_crc32 = None if None in crcs else zlib.crc32(repr(crcs).encode())
        of_files = [getattr(source, "file_sizes", None) for source in self._sources]
        self.file_sizes = None if None in of_files else self._file_sizes

    def __len__(self) -> int:
        return 2 * max(map(len, self._sources))

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        row, which = divmod(range(len(self))[i], 2)
        source, numbers = self._sources[which], self._numbers[which]
        example = source[row % len(source)]
        return example | {"caption": numbers[example["caption"]], "label": np.int32(-1)}

    def _file_sizes(self) -> np.ndarray:
        each = [source.file_sizes() for source in self._sources]  # type: ignore[attr-defined]
        rows = np.arange(len(self))
        return np.where(
            (rows % 2 == 0)[:, None],
            each[0][rows // 2 % len(each[0])],
            each[1][rows // 2 % len(each[1])],
        )


def alternating(first: ImageSource, second: ImageSource) -> ImageSource:
    """A set whose examples are of one set and of another in turn; the smaller one is repeated.

    Raises:
      UserError: sets of other shapes or types, or without captions.
    """
    for source in (first, second):
        if not source.captions:
            raise UserError(f"{source.name} has no captions: give a prompt for all of its images")
    if (first.image_shape, first.dtype) != (second.image_shape, second.dtype):
        raise UserError(
            f"{second.name} has {second.dtype} {second.image_shape}, and {first.name} "
            f"{first.dtype} {first.image_shape}: expected the same"
        )
    return _Alternating(first, second)
