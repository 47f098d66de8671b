"""Spatial conditions computed from images.

Each function here returns a function of images (B, H, W, C) in [-1, 1] to maps
(B, H, W, channels) in [-1, 1]. In training the map is computed from the example itself, in
sampling from an image given by the user.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from diffjax.models.condition import SpatialMap
from diffjax.types import Array

MakeMap = Callable[[Array], Array]
# Name of a random stream -> its key at this step.
Keys = Callable[[str], Array]


class AugmentedMap(Protocol):
    """A `MakeMap` that is augmented in training; `super_resolution.SuperResolution` is one."""

    @property
    def is_augmented(self) -> bool:
        """Whether `draw` changes the maps at random."""
        ...

    @property
    def has_level(self) -> bool:
        """Whether the network is given the map's noise level, as `SpatialMap.log_snr`."""
        ...

    def __call__(self, images: Array) -> Array:
        """The maps without augmentation."""
        ...

    def draw(self, images: Array, *, key: Keys, indices: Array) -> SpatialMap:
        """The augmented maps of training images; see `SuperResolution.draw`."""
        ...

    def at_level(self, values: Array, level: Array, *, key: Array, indices: Array) -> SpatialMap:
        """Maps at noise levels (B,) in [0, 1]; see `SuperResolution.at_level`."""
        ...


def in_training(make: MakeMap, images: Array, *, key: Keys, indices: Array) -> SpatialMap:
    """The maps of training images, augmented if `make` is an `AugmentedMap`."""
    draw = getattr(make, "draw", None)
    if draw is not None:
        drawn: SpatialMap = draw(images, key=key, indices=indices)
        return drawn
    values = make(images)
    return SpatialMap(values, jnp.ones(len(values), bool))


def has_level(make: MakeMap | None) -> bool:
    """Whether a network is given the noise level of these maps."""
    return bool(getattr(make, "has_level", False))


def at_level(
    make: MakeMap | None, values: Array, level: float, *, key: Array, indices: Array
) -> SpatialMap:
    """Maps for sampling: at a noise level if they have one, else unchanged.

    Args:
      make: what makes the model's maps.
      values: (B, H, W, C) maps.
      level: in [0, 1]; 0 for none.
      key: of the noise.
      indices: (B,) numbers of the samples.
    """
    if not has_level(make):
        return SpatialMap(values, jnp.ones(len(values), bool))
    augmented: AugmentedMap = make  # type: ignore[assignment]
    levels = jnp.full(len(values), level, jnp.float32)
    return augmented.at_level(values, levels, key=key, indices=indices)


def low_resolution(*, factor: int = 4) -> MakeMap:
    """The means of factor x factor pixels, at full resolution: super-resolution.

    If the factor does not divide the sides, images are edge-padded at the right and bottom.

    Raises:
      ValueError: a factor that is not an integer of at least 2.
    """
    if type(factor) is not int or factor < 2:
        raise ValueError(f"factor must be a whole number >= 2, not {factor!r}")

    def make(images: Array) -> Array:
        height, width = images.shape[1:3]
        padded = jnp.pad(
            images, ((0, 0), (0, -height % factor), (0, -width % factor), (0, 0)), mode="edge"
        )
        batch, h, w, channels = padded.shape
        cells = padded.reshape(batch, h // factor, factor, w // factor, factor, channels)
        means = jnp.broadcast_to(cells.mean((2, 4), keepdims=True), cells.shape)
        return means.reshape(padded.shape)[:, :height, :width]

    return make


def silhouette(*, background: float = 1.0, tolerance: float = 0.1) -> MakeMap:
    """1 where a pixel differs from the background in any channel, -1 where it does not.

    Args:
      background: the background's value in every channel; 1 is white.
      tolerance: the largest difference that counts as background.

    Raises:
      ValueError: a value out of range.
    """
    for name, value, low, high in (
        ("background", background, -1, 1),
        ("tolerance", tolerance, 0, 2),
    ):
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"{name} must be a number in [{low}, {high}], not {value!r}")

    def make(images: Array) -> Array:
        differs = (jnp.abs(images - background) > tolerance).any(-1, keepdims=True)
        return jnp.where(differs, 1.0, -1.0)

    return make


def edges(*, threshold: float = 0.25) -> MakeMap:
    """1 where the magnitude of the luma's Sobel gradient exceeds the threshold, -1 elsewhere.

    The gradient is in units of the pixel range per pixel; borders are edge-padded.

    Raises:
      ValueError: a threshold that is not a positive number.
    """
    if type(threshold) not in (int, float) or not threshold > 0:
        raise ValueError(f"threshold must be a number > 0, not {threshold!r}")

    def make(images: Array) -> Array:
        channels = images.shape[-1]
        luma = images @ (jnp.array([0.299, 0.587, 0.114]) if channels == 3 else jnp.ones(1))
        padded = jnp.pad(luma, ((0, 0), (1, 1), (1, 1)), mode="edge")
        smooth, difference = jnp.array([1.0, 2.0, 1.0]) / 4, jnp.array([-1.0, 0.0, 1.0]) / 2

        def slope(rows: Array, columns: Array) -> Array:
            kernel = jnp.outer(rows, columns)[None, None]
            return jax.lax.conv(padded[:, None], kernel, (1, 1), "VALID")[:, 0]

        steep = jnp.hypot(slope(smooth, difference), slope(difference, smooth)) / 2 > threshold
        return jnp.where(steep, 1.0, -1.0)[..., None]

    return make
