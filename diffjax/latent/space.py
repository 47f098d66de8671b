"""The space of x_0: pixels, arrays of any shape, or the latents of a first stage."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import data, rng
from diffjax.conditioning import maps
from diffjax.conditioning.maps import Keys, MakeMap
from diffjax.images import to_model_range
from diffjax.latent import random_masks
from diffjax.latent.embedded import with_arrays
from diffjax.latent.encoded import encoded
from diffjax.latent.first_stage import FirstStage, StageParams, digest, latent_mask
from diffjax.models.blocks import space_to_depth
from diffjax.models.condition import SpatialMap
from diffjax.types import Array

# Images (B, H, W, C) in [-1, 1] -> images, of the same shape or windows of them.
Augment = Callable[[Array], Array]


class DiffusionSpace(Protocol):
    """The space in which diffusion takes place, and its maps from and to images.

    Attributes:
      shape: of one x_0.
      image_shape: (H, W, C) of the images, or the shape of other data.
      images: whether samples are images, returned as uint8 (H, W, C).
      map_channels: of a spatial condition (a map) at the network's input, 0 for none.
      identity: a digest of the first stage's weights; "" for none.
      description: origin of the first stage, for messages.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def image_shape(self) -> tuple[int, ...]: ...
    @property
    def images(self) -> bool: ...
    @property
    def map_channels(self) -> int: ...
    @property
    def identity(self) -> str: ...
    @property
    def description(self) -> str: ...

    def source(self, images: data.ImageSource) -> data.ImageSource:
        """The source of batches for a set of images."""
        ...

    def read(
        self,
        batch: Mapping[str, Array],
        *,
        key: Keys,
        indices: Array,
        augment: Augment | None = None,
    ) -> tuple[Array, SpatialMap | None]:
        """x_0 and the map of a batch, inside a train step.

        Args:
          batch: the arrays.
          key: a random stream's name -> its key at this step.
          indices: (B,) places of the examples in the global batch.
          augment: images (B, H, W, C) in [-1, 1] -> changed images, which maps are made of, too.

        Returns:
          x_0, and its map as a network is trained on it; see `maps.AugmentedMap`.

        Raises:
          ValueError: `augment` of data that are not images.
        """
        ...

    def of_images(self, images: Array) -> Array:
        """(B, H, W, C) in [-1, 1] -> x_0."""
        ...

    def to_images(self, x_0: Array) -> Array:
        """x_0 -> (B, H, W, C), about [-1, 1]."""
        ...

    def map_of(self, images: Array, mask: np.ndarray | Array | None = None) -> Array | None:
        """The map of (B, H, W, C) images in [-1, 1], at the network's input size.

        Args:
          images: (B, H, W, C) in [-1, 1].
          mask: (H, W, 1), 1 where pixels are known, for maps of what is known of an image; None
            for nothing. Other maps do not depend on it.
        """
        ...

    def mask(self, mask: np.ndarray | Array) -> Array:
        """Converts a mask (H, W, 1), 1 where pixels are kept, to the size of x_0."""
        ...

    def example(self) -> dict[str, Any]:
        """The shapes of a batch of one, without text."""
        ...


class PixelSpace(NamedTuple):
    """x_0 is the image in [-1, 1]."""

    image_shape: tuple[int, ...]
    make_map: MakeMap | None = None
    images: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image_shape

    @property
    def map_channels(self) -> int:
        return _map_channels(self.map_of, self.image_shape)

    @property
    def identity(self) -> str:
        return ""

    @property
    def description(self) -> str:
        return ""

    def source(self, images: data.ImageSource) -> data.ImageSource:
        return images

    def read(
        self,
        batch: Mapping[str, Array],
        *,
        key: Keys,
        indices: Array,
        augment: Augment | None = None,
    ) -> tuple[Array, SpatialMap | None]:
        x_0 = to_model_range(batch["image"])
        if augment is not None:
            x_0 = augment(x_0)
        if self.make_map is None:
            return x_0, None
        return x_0, maps.in_training(self.make_map, x_0, key=key, indices=indices)

    def of_images(self, images: Array) -> Array:
        return images

    def to_images(self, x_0: Array) -> Array:
        return x_0

    def map_of(self, images: Array, mask: np.ndarray | Array | None = None) -> Array | None:
        return None if self.make_map is None else self.make_map(images)

    def mask(self, mask: np.ndarray | Array) -> Array:
        return jnp.asarray(mask)

    def example(self) -> dict[str, Any]:
        return _example(self.image_shape, jnp.uint8)


class ArraySpace(NamedTuple):
    """x_0 is the stored array, of any shape: points, waveforms, another model's latents."""

    image_shape: tuple[int, ...]
    images: bool = False
    map_channels: int = 0
    identity: str = ""
    description: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image_shape

    def source(self, images: data.ImageSource) -> data.ImageSource:
        return images

    def read(
        self,
        batch: Mapping[str, Array],
        *,
        key: Keys,
        indices: Array,
        augment: Augment | None = None,
    ) -> tuple[Array, SpatialMap | None]:
        if augment is not None:
            raise ValueError("arrays can't be augmented as images: leave config.data.augment empty")
        return batch["image"], None

    def of_images(self, images: Array) -> Array:
        return images

    def to_images(self, x_0: Array) -> Array:
        return x_0

    def map_of(self, images: Array, mask: np.ndarray | Array | None = None) -> Array | None:
        return None

    def mask(self, mask: np.ndarray | Array) -> Array:
        return jnp.asarray(mask)

    def example(self) -> dict[str, Any]:
        return _example(self.image_shape, jnp.float32)


class LatentSpace(NamedTuple):
    """x_0 is a first stage's scaled latent; maps are folded to its size by space-to-depth.

    With `inpaints`, the map is instead what is known of an image: a channel that is 1 where latents
    are to be drawn, and the latents of the image with unknown pixels of 0 (Rombach et al. 2022,
    section 4.5). In training, masks are random (`random_masks`), so that a batch has the pixels,
    too, and masked images are encoded in each step.
    """

    stage: FirstStage
    params: StageParams
    make_map: MakeMap | None = None
    map_name: str = "none"
    description: str = ""
    images: bool = True
    inpaints: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stage.latent_shape

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.stage.image_shape

    @property
    def map_channels(self) -> int:
        if self.inpaints:
            return 1 + self.shape[-1]
        return _map_channels(self.map_of, self.stage.image_shape)

    @property
    def identity(self) -> str:
        return digest(self.params)

    def source(self, images: data.ImageSource) -> data.ImageSource:
        key = f"{self.identity} {jnp.dtype(self.stage.encoder.dtype).name} {self.map_name}"
        if self.stage.encode_tile:
            key += f" in tiles of {self.stage.encode_tile}"

        def encode(params: StageParams, images: Array) -> dict[str, Array]:
            x = to_model_range(images)
            made = None if self.inpaints else self.map_of(x)
            of_map = {} if made is None else {"map": made}
            return {"image": self.stage.encode(params, x), **of_map}

        latents = encoded(images, encode, self.params, key=key)
        return with_arrays(latents, "pixels", _Pixels(images)) if self.inpaints else latents

    def read(
        self,
        batch: Mapping[str, Array],
        *,
        key: Keys,
        indices: Array,
        augment: Augment | None = None,
    ) -> tuple[Array, SpatialMap | None]:
        if augment is not None:
            raise ValueError("cached latents can't be augmented: leave config.data.augment empty")
        eps = rng.per_example(key("latent"), indices, lambda k: jax.random.normal(k, self.shape))
        values = batch.get("map")
        if self.inpaints:
            size = (self.image_shape[0], self.image_shape[1])
            known = rng.per_example(key("mask"), indices, lambda k: random_masks.known(k, size))
            values = self._known(to_model_range(batch["pixels"]), known)
        spatial = None
        if values is not None:
            spatial = SpatialMap(values.astype(jnp.float32), jnp.ones(len(values), bool))
        return self.stage.sample(self.params, batch["image"], eps=eps), spatial

    def of_images(self, images: Array) -> Array:
        return _of_images(self.stage, self.params, images)

    def to_images(self, x_0: Array) -> Array:
        return _to_images(self.stage, self.params, x_0)

    def map_of(self, images: Array, mask: np.ndarray | Array | None = None) -> Array | None:
        if self.inpaints:
            known = jnp.zeros((*self.image_shape[:2], 1)) if mask is None else jnp.asarray(mask)
            return self._known(images, jnp.broadcast_to(known, (len(images), *known.shape)))
        if self.make_map is None:
            return None
        return space_to_depth(self.make_map(images), self.stage.factor)

    def _known(self, images: Array, known: Array) -> Array:
        """The map of images (B, H, W, C), of which `known` (B, H, W, 1) is 1 at known pixels."""
        masked = self.of_images(jnp.where(known > 0.5, images, 0.0))
        return jnp.concatenate([1.0 - jax.vmap(self.mask)(known), masked], axis=-1)

    def mask(self, mask: np.ndarray | Array) -> Array:
        return latent_mask(jnp.asarray(mask), latent_shape=self.shape, factor=self.stage.factor)

    def example(self) -> dict[str, Any]:
        channels = self.stage.encoder.out_channels
        batch = _example((*self.shape[:2], channels), jnp.float16)
        if self.inpaints:
            batch["pixels"] = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.uint8)
        elif self.map_channels:
            shape = (1, *self.shape[:2], self.map_channels)
            batch["map"] = jax.ShapeDtypeStruct(shape, jnp.float16)
        return batch


class _Pixels:
    """The pixels of images by their numbers, read where they are needed."""

    def __init__(self, images: data.ImageSource) -> None:
        self._images = images

    def __getitem__(self, rows: Any) -> np.ndarray:
        if np.ndim(rows) == 0:
            return self._images[int(rows)]["image"]
        return np.stack([self._images[int(row)]["image"] for row in rows])


def _example(shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    return {
        "image": jax.ShapeDtypeStruct((1, *shape), dtype),
        "label": jax.ShapeDtypeStruct((1,), jnp.int32),
    }


@jax.jit(static_argnums=0)
def _of_images(stage: FirstStage, params: StageParams, images: Array) -> Array:
    return stage.sample(params, stage.encode(params, images))


@jax.jit(static_argnums=0)
def _to_images(stage: FirstStage, params: StageParams, x_0: Array) -> Array:
    return stage.decode(params, x_0)


def _map_channels(map_of: Callable[[Array], Array | None], shape: tuple[int, ...]) -> int:
    made = jax.eval_shape(map_of, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return 0 if made is None else made.shape[-1]
