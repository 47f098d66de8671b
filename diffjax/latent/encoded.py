"""A set's images as a first stage encodes them, once, and kept for the next run."""

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
from diffjax.types import Array

_logger = logging.getLogger("diffjax")

ENCODE_BATCH = 128
LIMIT_MB = 4096  # of all latents that are kept


class LatentSource(data.ArraySource):
    """A set whose images are the first stage's maps, float16 (N, h, w, map channels).

    Attributes:
      maps: float16 (N, h, w, channels), or None.
    """

    def __init__(self, source: data.ImageSource, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes a set's names and what was encoded of it: image, label, and maybe caption, map."""
        self.name = source.name
        self.images = arrays["image"]
        self.labels = arrays["label"]
        self.maps = arrays.get("map")
        self.image_shape = self.images.shape[1:]
        self.dtype = self.images.dtype
        self.held_out = None
        self.class_names = source.class_names
        self.captions, self.caption_numbers = source.captions, arrays.get("caption")

    def take(self, rows: SupportsIndex | np.ndarray) -> dict[str, Any]:
        """As `ArraySource.take`, with the maps."""
        examples = super().take(rows)
        return examples if self.maps is None else examples | {"map": self.maps[rows]}


def encoded(
    source: data.ImageSource,
    encode: Callable[[Any, Array], dict[str, Array]],
    frozen: Any,
    *,
    key: str,
) -> LatentSource:
    """A set's latents, from the cache folder or encoded and then kept there.

    Args:
      source: the images.
      encode: (frozen, uint8 (B, H, W, C)) -> {"image": ..., maybe "map": ...}, (B, ...) each.
      frozen: what it is called with.
      key: changes with what `encode` gives.

    Raises:
      UserError: latents that are not finite.
    """
    folder = cache_folder() / "latents" / _key(key, source)
    kept = _read(folder, len(source))
    if kept is not None:
        _logger.info("%s: latents read from %s", source.name, folder)
        return LatentSource(source, kept)
    start = time.monotonic()
    arrays = _encode_all(source, jax.jit(encode), frozen)
    if not np.isfinite(arrays["image"]).all():
        raise UserError("the first stage gives latents that are not finite: train it again")
    _logger.info(
        "%s: %d images encoded in %.0f s", source.name, len(source), time.monotonic() - start
    )
    try:
        # The images last: where they are, all is.
        for name, array in sorted(arrays.items(), key=lambda item: item[0] == "image"):
            atomic_write(folder / f"{name}.npy", partial(_save, array))
        drop_unused(folder.parent, LIMIT_MB * 2**20)
    except (OSError, UserError) as error:  # they are encoded the next time, too
        _logger.info("%s: latents are not kept: %s", folder, error)
    return LatentSource(source, arrays)


def _save(array: np.ndarray, file: BinaryIO) -> None:
    np.save(file, array)


def _encode_all(
    source: data.ImageSource, encode: Callable[[Any, Any], dict[str, Array]], frozen: Any
) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    size = min(ENCODE_BATCH, len(source))
    for first in range(0, len(source), size):
        # The last batch is filled up with repeats: one shape, one program.
        batch = _take(source, np.arange(first, first + size) % len(source))
        made = encode(frozen, batch["image"])
        batch |= {name: np.asarray(array).astype(np.float16) for name, array in made.items()}
        for name, array in batch.items():
            parts.setdefault(name, []).append(array[: len(source) - first])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _take(source: data.ImageSource, rows: np.ndarray) -> dict[str, np.ndarray]:
    if isinstance(source, data.ArraySource):
        return source.take(rows)
    examples = [source[int(row)] for row in rows]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _read(folder: Path, count: int) -> dict[str, np.ndarray] | None:
    """What was kept, mapped read-only; None where there is nothing that can be read."""
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
    """Changes with the key and the images; 256 of them stand for a set that is streamed."""
    found = hashlib.sha256(key.encode())
    whole = isinstance(source, data.ArraySource)
    few = np.unique(np.linspace(0, len(source) - 1, 256).astype(int))
    batch = _take(source, np.arange(len(source)) if whole else few)
    for name in sorted(batch):
        found.update(f"{name} {batch[name].shape}".encode())
        found.update(np.ascontiguousarray(batch[name]).tobytes())
    found.update(f"{len(source)} {source.class_names} {source.captions}".encode())
    return found.hexdigest()[:32]
