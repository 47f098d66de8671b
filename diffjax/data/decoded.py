"""A cache of decoded sets: memory-mapping a file is instant, decoding 60,000 PNGs takes seconds.

The cache folder's data/<key>/ contains images.npy, which is memory-mapped, and labels.npz with
the labels, class names and captions. The key is a digest of the prepared files' paths, sizes and
modification times, the split, and the decoding options. Files are written atomically and never
change afterwards. The cache can be deleted at any time.
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

from diffjax.data.images import Size
from diffjax.data.sources import ArraySource
from diffjax.errors import UserError
from diffjax.files import atomic_write, cache_folder, drop_unused, touch

# The least recently used sets are dropped until the rest is no larger than this.
LIMIT_MB = 4096

_DECODING = 2  # increment when the decoding of the same files changes


def key(directory: Path, *, split: str, image_size: Size | None, channels: int | None) -> str:
    """The cache key of a decoded split: 32 hexadecimal digits.

    Args:
      directory: a prepared set's directory, which directly contains its files.
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
    """A cached set, its images memory-mapped read-only.

    Args:
      key: from `key`.
      name: the set's name.
      memory_limit_mb: sets of more MiB than this are ignored, since they would be streamed.

    Returns:
      The set, or None if there is none that can be read.
    """
    folder = _folder() / key
    try:
        # Mapping fails for a file shorter than its header declares.
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
    except Exception:  # zipfile and NumPy raise many types for corrupt files
        return None
    touch(folder)
    return source


def keep(key: str, source: ArraySource) -> None:
    """Caches a decoded set; does nothing if it can't be written or is larger than LIMIT_MB."""
    if source.images.nbytes > LIMIT_MB * 2**20:
        return
    folder = _folder() / key
    arrays: dict[str, Any] = {
        "labels": source.labels,
        "class_names": np.asarray(source.class_names, np.str_),
        # A NumPy string array would pad every caption to the longest.
        "captions": np.frombuffer(json.dumps(source.captions).encode(), np.uint8),
    }
    if source.caption_numbers is not None:
        arrays["caption_numbers"] = source.caption_numbers
    # A full disk must not end a run; the set is then decoded again next time.
    with contextlib.suppress(OSError, UserError):
        atomic_write(folder / "images.npy", lambda file: np.save(file, source.images))
        atomic_write(folder / "labels.npz", lambda file: np.savez(file, **arrays))
        drop_unused(_folder(), LIMIT_MB * 2**20)


def _folder() -> Path:
    return cache_folder() / "data"
