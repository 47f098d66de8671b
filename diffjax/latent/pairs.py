"""Pairs of noise and what a model's ODE makes of it, in the place of data and new noise (reflow).

Liu et al. 2023, "Flow straight and fast": flow matching on the pairs of a trained flow gives
straighter paths, which few steps can follow. The pairs are drawn once and cached.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import data, rng
from diffjax.errors import UserError
from diffjax.files import cache_folder
from diffjax.latent.encoded import read_arrays, write_arrays
from diffjax.latent.space import Augment, DiffusionSpace, Keys
from diffjax.models.condition import SpatialMap
from diffjax.progress import Bar
from diffjax.types import Array

_logger = logging.getLogger("diffjax")

# (parameters, noise (B, ...), labels (B,)) -> x_0, of the noise's shape.
Solve = Callable[[Any, Array, Array], Array]


class PairSource(data.ArraySource):
    """Samples as data, float16 (N, ...), each with "noise" of its shape.

    Attributes:
      noise: float16 (N, ...).
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], *, name: str, class_names: tuple[str, ...]
    ) -> None:
        """Takes the arrays image, noise and label."""
        self.name, self.class_names = name, class_names
        self.images, self.noise, self.labels = (arrays[k] for k in ("image", "noise", "label"))
        self.image_shape, self.dtype = self.images.shape[1:], self.images.dtype
        self.held_out, self.index_crc32 = None, None
        self.captions, self.caption_numbers = (), None

    def take(self, rows: SupportsIndex | np.ndarray) -> dict[str, Any]:
        """Like `ArraySource.take`, with the noise."""
        return super().take(rows) | {"noise": self.noise[rows]}


def pairs(
    solve: Solve,
    params: Any,
    *,
    shape: tuple[int, ...],
    count: int,
    num_classes: int,
    seed: int,
    batch: int,
    key: str,
    name: str,
    class_names: tuple[str, ...],
) -> PairSource:
    """Pairs from the cache, or drawn and then cached.

    Args:
      solve: the ODE's solution.
      params: the model's parameters.
      shape: of one x_0.
      count: number of pairs.
      num_classes: pair i has the label i mod num_classes; 0 for none.
      seed: of the noise.
      batch: pairs drawn at a time.
      key: identifies what `solve` computes.
      name, class_names: of the set.

    Raises:
      UserError: samples that are not finite.
    """
    folder = cache_folder() / "latents" / key
    kept = read_arrays(folder, count)
    if kept is not None and "noise" in kept:
        _logger.info("%s: pairs of noise and sample read from %s", name, folder)
        return PairSource(kept, name=name, class_names=class_names)
    start = time.monotonic()
    draw = jax.jit(
        lambda i: rng.per_example(
            rng.stream(seed, "pair_noise"), i, lambda k: jax.random.normal(k, shape)
        ).astype(jnp.float16)
    )
    solved = jax.jit(lambda params, noise, label: solve(params, noise.astype(jnp.float32), label))
    parts: dict[str, list[np.ndarray]] = {"image": [], "noise": [], "label": []}
    with Bar(f"{name}: drawing pairs of noise and sample", count, unit="pair") as bar:
        for first in range(0, count, batch):
            # The last batch is drawn whole: one shape, one program.
            indices = np.arange(first, first + batch)
            label = (indices % num_classes if num_classes else np.full(batch, -1)).astype(np.int32)
            noise = draw(indices)
            made = {"image": solved(params, noise, label), "noise": noise, "label": label}
            for part, array in made.items():
                wanted = np.asarray(array)[: count - first]
                parts[part].append(wanted if part == "label" else wanted.astype(np.float16))
            bar(first + batch)
    arrays = {part: np.concatenate(each) for part, each in parts.items()}
    if not np.isfinite(arrays["image"]).all():
        raise UserError(f"{name}: the teacher's samples are not finite: use more steps")
    _logger.info(
        "%s: %d pairs of noise and sample drawn in %.0f s", name, count, time.monotonic() - start
    )
    write_arrays(folder, arrays)
    return PairSource(arrays, name=name, class_names=class_names)


class PairSpace(NamedTuple):
    """A space whose x_0 come with their noise, instead of being made of images.

    Attributes:
      space: of the model.
      draw: images -> the pairs that take their place.
    """

    space: DiffusionSpace
    draw: Callable[[data.ImageSource], PairSource]
    map_channels: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.space.shape

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.space.image_shape

    @property
    def images(self) -> bool:
        return self.space.images

    @property
    def identity(self) -> str:
        return self.space.identity

    @property
    def description(self) -> str:
        return self.space.description

    def source(self, images: data.ImageSource) -> data.ImageSource:
        return self.draw(images)

    def read(
        self,
        batch: Mapping[str, Array],
        *,
        key: Keys,
        indices: Array,
        augment: Augment | None = None,
    ) -> tuple[Array, SpatialMap | None]:
        if augment is not None:
            raise ValueError(
                "pairs of noise and sample can't be augmented: leave config.data.augment empty"
            )
        return batch["image"].astype(jnp.float32), None

    def of_images(self, images: Array) -> Array:
        return self.space.of_images(images)

    def to_images(self, x_0: Array) -> Array:
        return self.space.to_images(x_0)

    def map_of(self, images: Array, mask: np.ndarray | Array | None = None) -> Array | None:
        return None

    def mask(self, mask: np.ndarray | Array) -> Array:
        return self.space.mask(mask)

    def example(self) -> dict[str, Any]:
        of_one = jax.ShapeDtypeStruct((1, *self.shape), jnp.float16)
        return {
            "image": of_one, "noise": of_one, "label": jax.ShapeDtypeStruct((1,), jnp.int32)
        }  # fmt: skip
