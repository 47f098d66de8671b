"""A data set encoded by a first stage, once, and cached for later runs."""

import hashlib
import logging
import time
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, SupportsIndex

import jax
import numpy as np

from diffjax import data
from diffjax.errors import UserError
from diffjax.files import atomic_write, cache_folder, drop_unused, touch
from diffjax.progress import Bar
from diffjax.types import Array

_logger = logging.getLogger("diffjax")

ENCODE_BATCH = 128
LIMIT_MB = 4096  # of all cached latents


class LatentSource(data.ArraySource):
    """A data set whose images are the encoder's output, float16 (N, h, w, map channels).

    Attributes:
      maps: spatial conditions, float16 (N, h, w, channels), or None.
    """

    def __init__(self, source: data.ImageSource, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes a source's metadata and the encoded arrays: image, label, optional caption, map."""
        self.name = source.name
        self.images = arrays["image"]
        self.labels = arrays["label"]
        self.maps = arrays.get("map")
        self.image_shape = self.images.shape[1:]
        self.dtype = self.images.dtype
        self.held_out = None
        self.index_crc32 = getattr(source, "index_crc32", None)
        self.class_names = source.class_names
        self.captions, self.caption_numbers = source.captions, arrays.get("caption")

    def take(self, rows: SupportsIndex | np.ndarray) -> dict[str, Any]:
        """Like `ArraySource.take`, with the maps."""
        examples = super().take(rows)
        return examples if self.maps is None else examples | {"map": self.maps[rows]}


def encoded(
    source: data.ImageSource,
    encode: Callable[[Any, Array], dict[str, Array]],
    frozen: Any,
    *,
    key: str,
    what: str = "the first stage",
    batch: int = ENCODE_BATCH,
) -> LatentSource:
    """A data set's latents, from the cache folder or encoded and then cached.

    Args:
      source: the images.
      encode: (frozen, uint8 (B, H, W, C)) -> {"image", optional "map"}, (B, ...) each.
      frozen: the first stage's parameters.
      key: identifies the function that `encode` computes.
      what: the encoder's name in messages.
      batch: images encoded at a time.

    Raises:
      UserError: latents that are not finite.
    """
    folder = cache_folder() / "latents" / _key(key, source)
    kept = read_arrays(folder, len(source))
    if kept is not None:
        _logger.info("%s: latents read from %s", source.name, folder)
        return LatentSource(source, kept)
    start = time.monotonic()
    arrays = _encode_all(source, jax.jit(encode), frozen, batch, what)
    if not np.isfinite(arrays["image"]).all():
        raise UserError(
            f"{what} encodes images of {source.name} to values that are not finite in float16: "
            "check its weights, or train it again"
        )
    _logger.info(
        "%s: %d images encoded in %.0f s", source.name, len(source), time.monotonic() - start
    )
    write_arrays(folder, arrays)
    return LatentSource(source, arrays)


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Caches the arrays of a set; if that fails, it is logged."""
    try:
        # The images last: if they exist, all files do.
        for name, array in sorted(arrays.items(), key=lambda item: item[0] == "image"):
            atomic_write(folder / f"{name}.npy", partial(_save, array))
        drop_unused(folder.parent, LIMIT_MB * 2**20)
    except (OSError, UserError) as error:
        _logger.info("%s: latents are not cached: %s", folder, error)


def _save(array: np.ndarray, file: BinaryIO) -> None:
    np.save(file, array)


def _encode_all(
    source: data.ImageSource,
    encode: Callable[[Any, Any], dict[str, Array]],
    frozen: Any,
    most: int,
    what: str,
) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    size = min(most, len(source))
    with Bar(f"{source.name}: encoding by {what}", len(source)) as bar:
        for first in range(0, len(source), size):
            # The last batch is padded with repeats: one shape, one program.
            batch = take(source, np.arange(first, first + size) % len(source))
            made = encode(frozen, batch["image"])
            batch |= {name: np.asarray(array).astype(np.float16) for name, array in made.items()}
            for name, array in batch.items():
                parts.setdefault(name, []).append(array[: len(source) - first])
            bar(first + size)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def take(source: data.ImageSource, rows: np.ndarray) -> dict[str, np.ndarray]:
    """A batch of a set's examples by number."""
    if isinstance(source, data.ArraySource):
        return source.take(rows)
    examples = [source[int(row)] for row in rows]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def read_arrays(folder: Path, count: int) -> dict[str, np.ndarray] | None:
    """The cached arrays, memory-mapped read-only; None if they are missing or unreadable."""
    try:
        arrays = {
            path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in folder.glob("*.npy")
        }
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if not {"image", "label"} <= arrays.keys() or any(len(a) != count for a in arrays.values()):
        return None
    touch(folder)
    return arrays


def _key(key: str, source: data.ImageSource) -> str:
    """A hash of the key and the images; of a streamed set, 256 of its images are hashed."""
    digest = hashlib.sha256(key.encode())
    whole = isinstance(source, data.ArraySource)
    few = np.unique(np.linspace(0, len(source) - 1, 256).astype(int))
    batch = take(source, np.arange(len(source)) if whole else few)
    for name in sorted(batch):
        digest.update(f"{name} {batch[name].shape}".encode())
        digest.update(np.ascontiguousarray(batch[name]).tobytes())
    digest.update(f"{len(source)} {source.class_names} {source.captions}".encode())
    return digest.hexdigest()[:32]
