"""What x_0 is: pixels, or the latents of a first stage. All else of the diffusion is the same."""

import contextlib
import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import data, rng
from diffjax.conditioning.maps import MakeMap
from diffjax.errors import UserError
from diffjax.files import atomic_write, cache_folder
from diffjax.models.blocks import space_to_depth
from diffjax.schedules import Array
from diffjax.training.first_stage.stage import FirstStage, Frozen, digest, latent_mask
from diffjax.training.state import random_flip, to_model_range

_logger = logging.getLogger("diffjax")

ENCODE_BATCH = 128

# The keys of a train step's streams by their names.
Keys = Callable[[str], Array]


class Space(Protocol):
    """Where diffusion happens.

    Attributes:
      shape: of one x_0.
      image_shape: (H, W, C) of the images.
      map_channels: of a map as the network gets it, 0 for none.
      identity: changes with what stands between images and x_0; "" for nothing.
      told: where that comes from, in words.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def map_channels(self) -> int: ...
    @property
    def identity(self) -> str: ...
    @property
    def told(self) -> str: ...

    def source(self, images: data.ImageSource) -> data.ImageSource:
        """What batches are taken of."""
        ...

    def read(
        self, batch: Mapping[str, Array], *, key: Keys, indices: Array, flip: bool
    ) -> tuple[Array, Array | None]:
        """x_0 and the map of a batch, within a train step."""
        ...

    def of_images(self, images: Array) -> Array:
        """(B, H, W, C) in [-1, 1] -> x_0."""
        ...

    def to_images(self, x_0: Array) -> Array:
        """x_0 -> (B, H, W, C), about [-1, 1]."""
        ...

    def map_of(self, images: Array) -> Array | None:
        """The map of (B, H, W, C) images in [-1, 1], as the network gets it."""
        ...

    def mask(self, mask: Array) -> Array:
        """(H, W, 1), 1 where pixels are kept, for x_0."""
        ...

    def example(self) -> dict[str, Any]:
        """A batch of one, in shapes, without its text."""
        ...


class Pixels(NamedTuple):
    """x_0 is the image in [-1, 1]."""

    image_shape: tuple[int, int, int]
    make_map: MakeMap | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image_shape

    @property
    def map_channels(self) -> int:
        return _map_channels(self.map_of, self.image_shape)

    @property
    def identity(self) -> str:
        return ""

    @property
    def told(self) -> str:
        return ""

    def source(self, images: data.ImageSource) -> data.ImageSource:
        return images

    def read(
        self, batch: Mapping[str, Array], *, key: Keys, indices: Array, flip: bool
    ) -> tuple[Array, Array | None]:
        x_0 = to_model_range(batch["image"])
        if flip:
            x_0 = random_flip(key("flip"), indices, x_0)
        return x_0, self.map_of(x_0)

    def of_images(self, images: Array) -> Array:
        return images

    def to_images(self, x_0: Array) -> Array:
        return x_0

    def map_of(self, images: Array) -> Array | None:
        return None if self.make_map is None else self.make_map(images)

    def mask(self, mask: Array) -> Array:
        return mask

    def example(self) -> dict[str, Any]:
        return _example(self.image_shape, jnp.uint8)


class Latents(NamedTuple):
    """x_0 is a first stage's scaled latent; a map's pixels are folded to the latents' size."""

    stage: FirstStage
    frozen: Frozen
    make_map: MakeMap | None = None
    map_name: str = "none"
    told: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.stage.latent_shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.stage.image_shape

    @property
    def map_channels(self) -> int:
        return _map_channels(self.map_of, self.stage.image_shape)

    @property
    def identity(self) -> str:
        return digest(self.frozen)

    def source(self, images: data.ImageSource) -> "LatentSource":
        return LatentSource(images, *_encoded(self, images))

    def read(
        self, batch: Mapping[str, Array], *, key: Keys, indices: Array, flip: bool
    ) -> tuple[Array, Array | None]:
        if flip:
            raise ValueError("latents of mirrored images are not kept: set config.data.flip=False")
        eps = rng.per_example(key("latent"), indices, lambda k: jax.random.normal(k, self.shape))
        values = batch.get("map")
        if values is not None:
            values = values.astype(jnp.float32)
        return self.stage.draw(self.frozen, batch["image"], eps=eps), values

    def of_images(self, images: Array) -> Array:
        return _of_images(self.stage, self.frozen, images)

    def to_images(self, x_0: Array) -> Array:
        return _to_images(self.stage, self.frozen, x_0)

    def map_of(self, images: Array) -> Array | None:
        if self.make_map is None:
            return None
        return space_to_depth(self.make_map(images), self.stage.factor)

    def mask(self, mask: Array) -> Array:
        return latent_mask(mask, latent_shape=self.shape, factor=self.stage.factor)

    def example(self) -> dict[str, Any]:
        channels = self.stage.encoder.out_channels
        batch = _example((*self.shape[:2], channels), jnp.float16)
        if self.map_channels:
            shape = (1, *self.shape[:2], self.map_channels)
            batch["map"] = jax.ShapeDtypeStruct(shape, jnp.float16)
        return batch


def _example(shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    return {
        "image": jax.ShapeDtypeStruct((1, *shape), dtype),
        "label": jax.ShapeDtypeStruct((1,), jnp.int32),
    }


@jax.jit(static_argnums=0)
def _of_images(stage: FirstStage, frozen: Frozen, images: Array) -> Array:
    return stage.draw(frozen, stage.encode(frozen, images))


@jax.jit(static_argnums=0)
def _to_images(stage: FirstStage, frozen: Frozen, x_0: Array) -> Array:
    return stage.decode(frozen, x_0)


def _map_channels(map_of: Callable[[Array], Array | None], shape: tuple[int, int, int]) -> int:
    made = jax.eval_shape(map_of, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return 0 if made is None else made.shape[-1]


class LatentSource(data.ArraySource):
    """A set whose images are the first stage's maps, float16 (N, h, w, map channels).

    Attributes:
      maps: float16 (N, h, w, channels), or None.
    """

    def __init__(
        self, source: data.ImageSource, images: np.ndarray, numbers: Mapping[str, np.ndarray]
    ) -> None:
        self.name = source.name
        self.images = images
        self.labels = numbers["label"]
        self.maps = numbers.get("map")
        self.image_shape = images.shape[1:]
        self.class_names = source.class_names
        self.captions, self.caption_numbers = source.captions, numbers.get("caption")

    def take(self, rows: SupportsIndex | np.ndarray) -> dict[str, Any]:
        """As `ArraySource.take`, with the maps."""
        examples = super().take(rows)
        return examples if self.maps is None else examples | {"map": self.maps[rows]}


def _encoded(space: Latents, source: data.ImageSource) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The latents' maps of all images and what belongs to them, kept for the next run."""
    folder = cache_folder() / "latents" / _key(space, source)
    kept = _read(folder, len(source))
    if kept is not None:
        _logger.info("%s: latents read from %s", source.name, folder)
        return kept
    start = time.monotonic()

    @jax.jit
    def encode(frozen: Frozen, images: Array) -> tuple[Array, Array | None]:
        x = to_model_range(images)
        made = space.map_of(x)
        latents_map = space.stage.encode(frozen, x).astype(jnp.float16)
        return latents_map, None if made is None else made.astype(jnp.float16)

    parts: dict[str, list[np.ndarray]] = {}
    size = min(ENCODE_BATCH, len(source))
    for first in range(0, len(source), size):
        # The last batch is filled up with repeats: one shape, one program.
        rows = np.arange(first, first + size) % len(source)
        batch = _take(source, rows)
        latents_map, made = encode(space.frozen, batch.pop("image"))
        batch["image"] = np.asarray(latents_map)
        if made is not None:
            batch["map"] = np.asarray(made)
        for name, array in batch.items():
            parts.setdefault(name, []).append(array[: len(source) - first])
    numbers = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    images = numbers.pop("image")
    if not np.isfinite(images).all():
        raise UserError("the first stage gives latents that are not finite: train it again")
    _logger.info(
        "%s: %d images encoded in %.0f s", source.name, len(images), time.monotonic() - start
    )
    try:
        atomic_write(folder / "images.npy", lambda file: np.save(file, images))
        atomic_write(folder / "numbers.npz", lambda file: np.savez(file, **_any(numbers)))
    except OSError as error:  # they are encoded the next time, too
        _logger.info("%s: latents are not kept: %s", folder, error.strerror)
    return images, numbers


def _any(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return dict(arrays)


def _take(source: data.ImageSource, rows: np.ndarray) -> dict[str, np.ndarray]:
    if isinstance(source, data.ArraySource):
        return source.take(rows)
    examples = [source[int(row)] for row in rows]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _read(folder: Path, count: int) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    try:
        images = np.asarray(np.load(folder / "images.npy", mmap_mode="r"))
        with np.load(folder / "numbers.npz") as archive:
            numbers = {name: archive[name] for name in archive.files}
        if len(images) != count or "label" not in numbers:
            return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    with contextlib.suppress(OSError):  # another user's cache may be read, though not touched
        os.utime(folder)
    return images, numbers


def _key(space: Latents, source: data.ImageSource) -> str:
    """Changes with the first stage, the map and the images (256 of them stand for a large set)."""
    found = hashlib.sha256(space.identity.encode())
    whole = isinstance(source, data.ArraySource)
    few = np.unique(np.linspace(0, len(source) - 1, 256).astype(int))
    rows = np.arange(len(source)) if whole else few
    batch = _take(source, rows)
    for name in sorted(batch):
        found.update(f"{name} {batch[name].shape}".encode())
        found.update(np.ascontiguousarray(batch[name]).tobytes())
    dtype = jnp.dtype(space.stage.encoder.dtype).name
    text = f"{dtype} {space.map_name} {len(source)} {source.class_names} {source.captions}"
    found.update(text.encode())
    return found.hexdigest()[:32]
