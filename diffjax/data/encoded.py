"""A source from encoded images: decoded into memory if it fits, else streamed."""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np

from diffjax.data import images
from diffjax.data.images import Size
from diffjax.data.sources import ArraySource, ImageSource, StreamedSource, number_captions
from diffjax.errors import UserError
from diffjax.files import atomic_write, cache_folder
from diffjax.progress import Bar

_CHUNK = 256
NAMED = 5  # unreadable images that a message names; a file lists all

_logger = logging.getLogger("diffjax")

_T = TypeVar("_T")


class EncodedImages(Protocol):
    """Stored PNG, JPEG or WebP images, each with a label."""

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def read(self, rows: Sequence[int]) -> Sequence[tuple[bytes | OSError, int]]:
        """Returns (bytes, label) of some images; an OSError instead of bytes on failure."""
        ...

    def open(self, row: int) -> BinaryIO:
        """Returns one image as a file, so that its header can be read without the rest.

        Raises:
          OSError: it cannot be read.
        """
        ...

    def where(self, row: int) -> str:
        """Returns the image's name in messages, e.g. its path."""
        ...


def _chunks(length: int) -> list[range]:
    return [range(i, min(i + _CHUNK, length)) for i in range(0, length, _CHUNK)]


def _readable(data: bytes | OSError) -> bytes:
    if isinstance(data, OSError):
        raise images.UnreadableImage(data.strerror or str(data))
    return data


def _map_chunks(
    function: Callable[[range], list[_T]], length: int, threads: int, *, what: str
) -> Iterator[list[_T]]:
    """Yields function(rows) for consecutive chunks of rows, in order; can be stopped early."""
    with contextlib.ExitStack() as held:
        bar = held.enter_context(Bar(what, length))
        each: Iterator[list[_T]] = map(function, _chunks(length))
        if threads > 1:
            pool = ThreadPoolExecutor(threads, thread_name_prefix="diffjax-decode")
            held.callback(pool.shutdown, cancel_futures=True)
            each = pool.map(function, _chunks(length))
        for number, chunk in enumerate(each, start=1):
            yield chunk
            bar(number * _CHUNK)


class _Broken:
    """Images that can't be read: the rows, and the reasons."""

    def __init__(self, encoded: EncodedImages, *, name: str) -> None:
        self._encoded, self._name = encoded, name
        self.reasons: dict[int, str] = {}

    def handle(self, on_broken: str) -> None:
        """Stops, or says what is skipped, if there are any.

        Raises:
          UserError: `on_broken` is "stop", or no image is left.
        """
        if not self.reasons:
            return
        count, total = len(self.reasons), len(self._encoded)
        lines = [f"{self._encoded.where(row)}: {why}" for row, why in self.reasons.items()]
        listed = "" if count <= NAMED and on_broken == "stop" else _listed(lines, self._name)
        few = "; ".join(lines[:NAMED]) + ("; ..." if count > NAMED else "")
        if on_broken == "skip" and count < total:
            _logger.warning(
                "%s: left out: %d of %d images that can't be read: %s%s",
                self._name, count, total, few, listed,
            )  # fmt: skip
            return
        raise UserError(
            f"{self._name}: cannot read {count} of {total} images: {few}{listed}; replace or "
            f"remove {'it' if count == 1 else 'them'}, or set --config.data.on_broken=skip"
        )

    def kept(self) -> np.ndarray:
        """The rows of the other images."""
        return np.setdiff1d(np.arange(len(self._encoded)), list(self.reasons))


def _listed(lines: Sequence[str], name: str) -> str:
    """Writes a list to the cache folder; returns where, for a message."""
    number = zlib.crc32(name.encode(errors="surrogateescape"))
    path = cache_folder() / "unreadable_images" / f"{number:08x}.txt"
    text = "\n".join(lines) + "\n"
    try:
        atomic_write(path, lambda file: file.write(text.encode(errors="surrogateescape")))
    except (OSError, UserError):
        return ""
    return f" (all are listed in {path})"


def _size_mismatch(
    name: str, where: tuple[str, str], sizes: tuple[tuple[int, int], tuple[int, int]]
) -> UserError:
    (h0, w0), (h1, w1) = sizes
    return UserError(
        f"{name}: images differ in size: {where[0]} is {w0}x{h0}, {where[1]} is {w1}x{h1}; "
        "set --config.data.image_size to bring all images to one size"
    )


def _read_header(encoded: EncodedImages, row: int) -> tuple[tuple[int, int], bool]:
    """Returns ((height, width), whether it is grey); raises UnreadableImage."""
    try:
        with encoded.open(row) as file, images.open_still(file) as image:
            return images.upright_size(image), images.is_grey(image)
    except OSError as error:
        raise images.UnreadableImage(error.strerror or str(error)) from error


def _first_size(encoded: EncodedImages) -> tuple[int, int] | None:
    """Returns (height, width) of the first image with a readable header, or None."""
    for row in range(len(encoded)):
        try:
            return _read_header(encoded, row)[0]
        except images.UnreadableImage:
            continue
    return None


def _scan_headers(
    encoded: EncodedImages, broken: _Broken, *, name: str, same_size: bool, limit: int, threads: int
) -> bool:
    """Checks the headers of the first `limit` images; returns whether all are grey."""

    def scan(rows: range) -> list[tuple[tuple[int, int], bool] | str]:
        headers: list[tuple[tuple[int, int], bool] | str] = []
        for row in rows:
            try:
                headers.append(_read_header(encoded, row))
            except images.UnreadableImage as error:
                headers.append(str(error))
        return headers

    first: tuple[int, tuple[int, int]] | None = None
    grey = True
    row = -1
    count = min(limit, len(encoded))
    for chunk in _map_chunks(scan, count, threads, what=f"{name}: reading headers"):
        for result in chunk:
            row += 1
            if isinstance(result, str):
                broken.reasons[row] = result
                continue
            size, is_grey = result
            grey &= is_grey
            first = first or (row, size)
            if same_size and size != first[1]:
                raise _size_mismatch(
                    name, (encoded.where(first[0]), encoded.where(row)), (first[1], size)
                )
    return grey


def _find_broken(encoded: EncodedImages, broken: _Broken, *, threads: int) -> None:
    """Decodes all images, to know those that can't be read."""

    def read(rows: range) -> list[str | None]:
        reasons: list[str | None] = []
        for data, _ in encoded.read(rows):
            try:
                images.decode(_readable(data))
                reasons.append(None)
            except images.UnreadableImage as error:
                reasons.append(str(error))
        return reasons

    row = -1
    for chunk in _map_chunks(read, len(encoded), threads, what="checking images"):
        for reason in chunk:
            row += 1
            if reason is not None:
                broken.reasons[row] = reason


def _decode_all(
    encoded: EncodedImages,
    broken: _Broken,
    *,
    name: str,
    image_size: Size | None,
    channels: int | None,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images, uint8 (N, H, W, C), and labels, int32 (N,); broken rows are empty."""

    def decode(rows: range) -> list[tuple[np.ndarray | str, int]]:
        decoded: list[tuple[np.ndarray | str, int]] = []
        for data, label in encoded.read(rows):
            try:
                pixels = images.decode(_readable(data), image_size=image_size, channels=channels)
                decoded.append((pixels, label))
            except images.UnreadableImage as error:
                decoded.append((str(error), label))
        return decoded

    length = len(encoded)
    labels = np.empty(length, np.int32)
    pixels: np.ndarray | None = None
    first = 0
    grey = True
    row = -1
    for chunk in _map_chunks(decode, length, threads, what=f"{name}: decoding"):
        for image, label in chunk:
            row += 1
            labels[row] = label
            if isinstance(image, str):
                broken.reasons[row] = image
                continue
            height, width, depth = image.shape
            if pixels is None:
                # Untouched pages are not allocated, so room for unused colour costs nothing.
                pixels = np.empty((length, height, width, channels or 3), np.uint8)
                first = row
            if (height, width) != pixels.shape[1:3]:
                size = pixels.shape[1], pixels.shape[2]
                raise _size_mismatch(
                    name, (encoded.where(first), encoded.where(row)), (size, (height, width))
                )
            pixels[row] = image
            grey &= depth == 1
    if pixels is None:  # every image is broken
        pixels = np.empty((length, 1, 1, 1), np.uint8)
    if channels is None and grey:
        pixels = np.ascontiguousarray(pixels[..., :1])
    return pixels, labels


def build_source(
    encoded: EncodedImages,
    *,
    name: str,
    class_names: tuple[str, ...],
    image_size: Size | None,
    channels: int | None,
    memory_limit_mb: int,
    scan_limit: int | None = None,
    on_broken: str = "stop",
    captions: Sequence[str] | None = None,
    index: Callable[[Sequence[int]], int] | None = None,
) -> ImageSource:
    """Makes a source from encoded images: decoded into memory if it fits, else streamed.

    Args:
      encoded: the images; at least one.
      name: the set's name.
      class_names: the classes in the order of the labels.
      image_size: side of the square images, or (height, width); None requires that all have one
        size.
      channels: 1 or 3; None gives 1 if no image has colour, else 3.
      memory_limit_mb: decoded sets of more MiB than this are streamed.
      scan_limit: number of headers that are checked in a streamed set; None checks all.
      on_broken: "stop" at images that can't be read, or "skip" them, for which all images of a
        streamed set are decoded once.
      captions: of each image; None if there are none.
      index: rows -> the checksum of the set that consists of them.

    Returns:
      The set. For a streamed one the headers are checked first, unless both `image_size` and
      `channels` are given; corrupt pixel data raises only when it is read.

    Raises:
      UserError: images cannot be read and `on_broken` is "stop", none can be read, or they differ
        in size and `image_size` is None.
    """
    length = len(encoded)
    size = images.height_width(image_size) if image_size is not None else _first_size(encoded)
    height, width = size or (1, 1)
    broken = _Broken(encoded, name=name)

    def fits(depth: int) -> bool:
        return length * height * width * depth <= memory_limit_mb * 2**20

    threads = min(8, os.cpu_count() or 1)
    depth = channels
    if not fits(depth or 3) and (image_size is None or depth is None):
        grey = _scan_headers(
            encoded,
            broken,
            name=name,
            same_size=image_size is None,
            limit=scan_limit or length,
            threads=threads,
        )
        depth = depth or (1 if grey else 3)
    if fits(depth or 3):
        pixels, labels = _decode_all(
            encoded, broken, name=name, image_size=image_size, channels=depth, threads=threads
        )
        broken.handle(on_broken)
        rows = broken.kept()
        if broken.reasons:
            pixels, labels = pixels[rows], labels[rows]
        whole = ArraySource(
            pixels, labels, name=name, class_names=class_names,
            index_crc32=index(rows.tolist()) if index else None, **_numbered(captions, rows),
        )  # fmt: skip
        whole.file_sizes = partial(_sizes, encoded, rows)
        return whole
    if on_broken == "skip":
        _find_broken(encoded, broken, threads=threads)
    broken.handle(on_broken)
    rows = broken.kept()

    def read(i: int) -> tuple[np.ndarray, int]:
        row = int(rows[i])
        [(data, label)] = encoded.read([row])
        try:
            return images.decode(_readable(data), image_size=image_size, channels=depth), label
        except images.UnreadableImage as error:
            raise UserError(
                f"{name}: cannot read {encoded.where(row)}: {error}; replace or remove it, or set "
                "--config.data.on_broken=skip"
            ) from error

    streamed = StreamedSource(
        read, length=len(rows), image_shape=(height, width, depth or 3), name=name,
        class_names=class_names, index_crc32=index(rows.tolist()) if index else None,
        **_numbered(captions, rows),
    )  # fmt: skip
    streamed.file_sizes = partial(_sizes, encoded, rows)
    return streamed


def _sizes(encoded: EncodedImages, rows: np.ndarray) -> np.ndarray:
    """int32 (N, 2): height and width of the stored images, from their headers."""
    return np.array([_read_header(encoded, int(row))[0] for row in rows], np.int32)


def _numbered(captions: Sequence[str] | None, rows: np.ndarray) -> dict[str, Any]:
    """The arguments of a source for the captions of some rows."""
    if captions is None:
        return {}
    distinct, numbers = number_captions([captions[row] for row in rows])
    return {"captions": distinct, "caption_numbers": numbers}
