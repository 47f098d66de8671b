"""Decoded sets, kept for the next run: mapping a file takes no time, decoding 60,000 PNGs seconds.

The cache folder's data/<key>/ holds images.npy, which is mapped and not read, and labels.npz with
the labels, the names of the classes and the captions. The key is a digest of what the images
follow from: the prepared files' paths, sizes and times of change, the split, and how they are
decoded. So a file never changes once it has its name, and it gets that only when it is whole and
on the disk. All of it can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from diffjax.data.sources import ArraySource
from diffjax.errors import UserError
from diffjax.files import atomic_write, cache_folder, drop_unused, touch

# Sets are dropped, those unused for longest first, until the rest takes no more than this.
LIMIT_MB = 4096

_DECODING = 2  # to be raised when the same files would be decoded to other arrays


def key(directory: Path, *, split: str, image_size: int | None, channels: int | None) -> str:
    """What a decoded split is kept under: 32 hexadecimal digits.

    Args:
      directory: a prepared set's directory, its files right in it.
      split, image_size, channels: as for `diffjax.data.load`.
    """
    files = sorted(
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
        for entry in os.scandir(directory)
    )
    what = [
        _DECODING, PIL.__version__, str(directory.resolve()), files, split, image_size, channels,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def find(key: str, *, name: str, memory_limit_mb: int) -> ArraySource | None:
    """A set that was kept, its images mapped read-only.

    Args:
      key: from `key`.
      name: the set's name.
      memory_limit_mb: a set of more MiB than this is not given, as it would not be decoded whole.

    Returns:
      The set, or None where there is none, or none that can be read.
    """
    folder = _folder() / key
    try:
        # A file that is shorter than its header says cannot be mapped.
        images = np.asarray(np.load(folder / "images.npy", mmap_mode="r"))
        with np.load(folder / "labels.npz") as archive:
            labels, class_names = archive["labels"], tuple(archive["class_names"].tolist())
            captions = json.loads(archive["captions"].tobytes())
            numbers = archive["caption_numbers"] if captions else None
        source = ArraySource(
            images,
            labels,
            name=name,
            class_names=class_names,
            captions=captions,
            caption_numbers=numbers,
        )
        if images.nbytes > memory_limit_mb * 2**20:
            return None
    except Exception:  # damage has many names in zipfile and NumPy, and one remedy
        return None
    touch(folder)
    return source


def keep(key: str, source: ArraySource) -> None:
    """Keeps a decoded set; does nothing where it can't be written or is larger than LIMIT_MB."""
    if source.images.nbytes > LIMIT_MB * 2**20:
        return
    folder = _folder() / key
    arrays: dict[str, Any] = {
        "labels": source.labels,
        "class_names": np.asarray(source.class_names, np.str_),
        # An array of text would give every caption the room of the longest.
        "captions": np.frombuffer(json.dumps(source.captions).encode(), np.uint8),
    }
    if source.caption_numbers is not None:
        arrays["caption_numbers"] = source.caption_numbers
    # Without room on the disk the set is decoded the next time, too: no reason to end a run.
    with contextlib.suppress(OSError, UserError):
        atomic_write(folder / "images.npy", lambda file: np.save(file, source.images))
        atomic_write(folder / "labels.npz", lambda file: np.savez(file, **arrays))
        drop_unused(_folder(), LIMIT_MB * 2**20)


def _folder() -> Path:
    return cache_folder() / "data"
