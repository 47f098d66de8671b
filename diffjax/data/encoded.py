"""A source from encoded images: decoded into memory if it fits, else streamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Protocol, TypeVar

import numpy as np

from diffjax.data import images
from diffjax.data.sources import ArraySource, ImageSource, StreamedSource
from diffjax.errors import UserError

_CHUNK = 256

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
    function: Callable[[range], list[_T]], length: int, threads: int
) -> Iterator[list[_T]]:
    """Yields function(rows) for consecutive chunks of rows, in order; can be stopped early."""
    if threads == 1:
        yield from map(function, _chunks(length))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="diffjax-decode")
    try:
        yield from pool.map(function, _chunks(length))
    finally:
        pool.shutdown(cancel_futures=True)


def _unreadable(name: str, failures: list[tuple[str, str]]) -> UserError:
    first, reason = failures[0]
    others = f" (and {len(failures) - 1} others)" if len(failures) > 1 else ""
    return UserError(
        f"{name}: cannot read {first}: {reason}{others}; replace or remove "
        f"{'it' if len(failures) == 1 else 'them'}"
    )


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
    encoded: EncodedImages, *, name: str, same_size: bool, limit: int, threads: int
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

    failures: list[tuple[str, str]] = []
    first: tuple[int, tuple[int, int]] | None = None
    grey = True
    row = -1
    for chunk in _map_chunks(scan, min(limit, len(encoded)), threads):
        for result in chunk:
            row += 1
            if isinstance(result, str):
                failures.append((encoded.where(row), result))
                continue
            size, is_grey = result
            grey &= is_grey
            first = first or (row, size)
            if same_size and size != first[1]:
                raise _size_mismatch(
                    name, (encoded.where(first[0]), encoded.where(row)), (first[1], size)
                )
    if failures:
        raise _unreadable(name, failures)
    return grey


def _decode_all(
    encoded: EncodedImages,
    *,
    name: str,
    image_size: int | None,
    channels: int | None,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images, uint8 (N, H, W, C), and labels, int32 (N,)."""

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
    failures: list[tuple[str, str]] = []
    grey = True
    row = -1
    for chunk in _map_chunks(decode, length, threads):
        for image, label in chunk:
            row += 1
            labels[row] = label
            if isinstance(image, str):
                failures.append((encoded.where(row), image))
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
    if failures or pixels is None:
        raise _unreadable(name, failures)
    if channels is None and grey:
        pixels = np.ascontiguousarray(pixels[..., :1])
    return pixels, labels


def build_source(
    encoded: EncodedImages,
    *,
    name: str,
    class_names: tuple[str, ...],
    image_size: int | None,
    channels: int | None,
    memory_limit_mb: int,
    scan_limit: int | None = None,
    captions: tuple[Sequence[str], np.ndarray | None] = ((), None),
) -> ImageSource:
    """Makes a source from encoded images: decoded into memory if it fits, else streamed.

    Args:
      encoded: the images; at least one.
      name: the set's name.
      class_names: the classes in the order of the labels.
      image_size: side of the square images; None requires that all have one size.
      channels: 1 or 3; None gives 1 if no image has colour, else 3.
      memory_limit_mb: decoded sets of more MiB than this are streamed.
      scan_limit: number of headers that are checked in a streamed set; None checks all.
      captions: the distinct captions, sorted, and integers (N,) of the images' captions, as
        `number_captions` returns them; ((), None) if there are none.

    Returns:
      The set. For a streamed one the headers are checked first, unless both `image_size` and
      `channels` are given; corrupt pixel data raises only when it is read.

    Raises:
      UserError: images cannot be read, or differ in size and `image_size` is None.
    """
    length, (texts, numbers) = len(encoded), captions
    size = (image_size, image_size) if image_size is not None else _first_size(encoded)
    height, width = size or (1, 1)

    def fits(depth: int) -> bool:
        return length * height * width * depth <= memory_limit_mb * 2**20

    threads = min(8, os.cpu_count() or 1)
    depth = channels
    if not fits(depth or 3) and (image_size is None or depth is None):
        grey = _scan_headers(
            encoded,
            name=name,
            same_size=image_size is None,
            limit=scan_limit or length,
            threads=threads,
        )
        depth = depth or (1 if grey else 3)
    if fits(depth or 3):
        pixels, labels = _decode_all(
            encoded, name=name, image_size=image_size, channels=depth, threads=threads
        )
        return ArraySource(
            pixels,
            labels,
            name=name,
            class_names=class_names,
            captions=texts,
            caption_numbers=numbers,
        )

    def read(row: int) -> tuple[np.ndarray, int]:
        [(data, label)] = encoded.read([row])
        try:
            return images.decode(_readable(data), image_size=image_size, channels=depth), label
        except images.UnreadableImage as error:
            raise _unreadable(name, [(encoded.where(row), str(error))]) from error

    return StreamedSource(
        read,
        length=length,
        image_shape=(height, width, depth or 3),
        name=name,
        class_names=class_names,
        captions=texts,
        caption_numbers=numbers,
    )
