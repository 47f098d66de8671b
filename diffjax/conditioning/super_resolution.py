r"""Trained super-resolution: the low-resolution image as a map, and its augmentation.

A network conditioned on a low-resolution image z, resized to the size of x_0 and concatenated to
x_t (Saharia et al. 2021, "SR3"), samples images of that low resolution. In a cascade z is itself a
sample, whose errors the network has not seen in training; so Ho et al. 2021 augment z:

    noise   z_s = cos(pi s / 2) z + sin(pi s / 2) eps,   s in [0, 1],                  (1)
            log_snr(s) = -2 log tan(pi s / 2)                                          (2)
    blur    a Gaussian filter of 3x3 pixels of low resolution

(1) is the non-truncated noise conditioning augmentation of section 4.2, by a forward process of its
own. As in Imagen (Saharia et al. 2022, section 2.4) it is applied to the resized image, the level s
is uniform in training and fixed in sampling, and the network is given log_snr(s). Blur is for large
factors, and in training alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from diffjax import rng
from diffjax.conditioning.maps import Keys
from diffjax.models.condition import SpatialMap
from diffjax.types import Array

# Interpolation -> its name in jax.image; "bicubic" is Keys' kernel with a = -1/2, as in Pillow.
RESIZES = {"bilinear": "linear", "bicubic": "cubic"}
DOWNSAMPLES = ("area", *RESIZES)
# What the network is given at levels 0 and 1, where (2) is infinite.
MAX_LOG_SNR = 15.0


@dataclass(frozen=True)
class SuperResolution:
    """The low-resolution image at the size of x_0, as a map; see `super_resolution`.

    Attributes:
      factor: ratio of the sides.
      resize: how the low-resolution image is enlarged, one of `RESIZES`.
      downsample: how it is made of an image in training, one of `DOWNSAMPLES`.
      noise: whether the map is noised, and the network is given the level.
      blur: share of training examples whose low-resolution image is blurred.
      blur_std: range of the filter's standard deviation, in pixels of low resolution.
    """

    factor: int
    resize: str = "bicubic"
    downsample: str = "bicubic"
    noise: bool = True
    blur: float = 0.0
    blur_std: tuple[float, float] = (0.4, 0.6)

    @property
    def is_augmented(self) -> bool:
        """Whether `draw` changes the maps at random."""
        return self.noise or self.blur > 0

    @property
    def has_level(self) -> bool:
        """Whether the network is given the map's noise level."""
        return self.noise

    def __call__(self, images: Array) -> Array:
        """Images (B, H, W, C) in [-1, 1] -> maps of the same shape, without augmentation."""
        return self.enlarged(self.low_resolution(images))

    def low_resolution(self, images: Array) -> Array:
        """Images (B, H, W, C) in [-1, 1] -> (B, H / factor, W / factor, C).

        Raises:
          ValueError: sides that the factor does not divide.
        """
        batch, height, width, channels = images.shape
        factor = self.factor
        if height % factor or width % factor:
            raise ValueError(
                f"factor = {factor} does not divide images of {height}x{width}: use another "
                "factor, or a size of which it is a divisor"
            )
        h, w = height // factor, width // factor
        if self.downsample == "area":
            return images.reshape(batch, h, factor, w, factor, channels).mean((2, 4))
        # Cubic weights overshoot, which a file of 8 bits would cut.
        return _clipped(_resized(images, (h, w), self.downsample))

    def enlarged(self, low: Array) -> Array:
        """Low-resolution images (B, h, w, C) in [-1, 1] -> (B, factor h, factor w, C)."""
        height, width = low.shape[1:3]
        return _clipped(_resized(low, (height * self.factor, width * self.factor), self.resize))

    def draw(self, images: Array, *, key: Keys, indices: Array) -> SpatialMap:
        """The augmented maps of training images, at a level s ~ U(0, 1) for each.

        Args:
          images: (B, H, W, C) in [-1, 1].
          key: a random stream's name -> its key at this step.
          indices: (B,) places of the examples in the global batch.
        """
        low = self.low_resolution(images)
        if self.blur:
            low = self._blurred_in_part(low, rng.per_example(key("map_blur"), indices, _same))
        values = self.enlarged(low)
        if not self.noise:
            return SpatialMap(values, jnp.ones(len(values), bool))
        level = rng.per_example(key("map_level"), indices, jax.random.uniform)
        return self.at_level(values, level, key=key("map_noise"), indices=indices)

    def at_level(self, values: Array, level: Array, *, key: Array, indices: Array) -> SpatialMap:
        """Maps noised by (1), each with noise of its own, and their log-SNR.

        Args:
          values: (B, H, W, C) resized low-resolution images in [-1, 1].
          level: (B,) s in [0, 1].
          key: of the noise.
          indices: (B,) numbers of the examples.
        """
        shape = values.shape[1:]
        eps = rng.per_example(key, indices, lambda k: jax.random.normal(k, shape))
        signal, noise = (scale[:, None, None, None] for scale in scales(level))
        return SpatialMap(
            signal * values + noise * eps, jnp.ones(len(values), bool), log_snr(level)
        )

    def _blurred_in_part(self, low: Array, keys: Array) -> Array:
        def one(key: Array, image: Array) -> Array:
            for_share, for_std = jax.random.split(key)
            least, most = self.blur_std
            std = jax.random.uniform(for_std, minval=least, maxval=most)
            blurred = gaussian_blur(image, std)
            return jnp.where(jax.random.bernoulli(for_share, self.blur), blurred, image)

        return jax.vmap(one)(keys, low)


def super_resolution(
    *,
    factor: int = 4,
    resize: str = "bicubic",
    downsample: str = "bicubic",
    noise: bool = True,
    blur: float = 0.0,
    blur_std: tuple[float, float] = (0.4, 0.6),
) -> SuperResolution:
    """The low-resolution image as a map, with noise conditioning augmentation.

    Args:
      factor: ratio of the sides, at least 2; in a cascade usually 2, 4 or 8.
      resize: "bicubic" (SR3) or "bilinear" (Ho et al. 2021): how it is enlarged.
      downsample: how it is made of a training image: "bicubic" or "bilinear", both antialiased, or
        "area", the mean of factor x factor pixels.
      noise: whether it is noised in training, at a level that the network is given.
      blur: share of training examples that are blurred; Ho et al. 2021 use 0.5 for 128x128 and
        256x256.
      blur_std: range of the blur's standard deviation, in pixels of low resolution.

    Raises:
      ValueError: a value out of range, or an unknown name.
    """
    if type(factor) is not int or factor < 2:
        raise ValueError(f"factor must be a whole number >= 2, not {factor!r}")
    for name, value, known in (
        ("resize", resize, tuple(RESIZES)),
        ("downsample", downsample, DOWNSAMPLES),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    if type(noise) is not bool:
        raise ValueError(f"noise must be True or False, not {noise!r}")
    if type(blur) not in (int, float) or not 0 <= blur <= 1:
        raise ValueError(f"blur must be a share in [0, 1], not {blur!r}")
    numbers: Any = blur_std
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] < math.inf:
        raise ValueError(f"blur_std must be two numbers, 0 < least <= most, not {blur_std!r}")
    return SuperResolution(factor, resize, downsample, noise, blur, tuple(numbers))


def scales(level: Array) -> tuple[Array, Array]:
    """(signal_scale, noise_scale) of (1) at levels in [0, 1]: exactly (1, 0) at 0.

    >>> [float(scale) for scale in scales(jnp.zeros(()))]
    [1.0, 0.0]
    """
    angle = jnp.pi / 2 * jnp.asarray(level, jnp.float32)
    return jnp.cos(angle), jnp.sin(angle)


def log_snr(level: Array) -> Array:
    """(2) at levels in [0, 1], cut to [-15, 15]."""
    signal, noise = scales(level)
    smallest = jnp.float32(math.exp(-MAX_LOG_SNR))  # its logarithm is finite
    ratio = jnp.maximum(signal, smallest) / jnp.maximum(noise, smallest)
    return jnp.clip(2 * jnp.log(ratio), -MAX_LOG_SNR, MAX_LOG_SNR)


def gaussian_blur(image: Array, std: Array) -> Array:
    """An image (H, W, C) filtered by a Gaussian of std pixels, cut to 3x3; edges are repeated."""
    side = jnp.exp(-0.5 / jnp.square(std))
    weights = jnp.stack([side, jnp.ones_like(side), side]) / (1 + 2 * side)
    for axis in (0, 1):
        pads = [(int(a == axis), int(a == axis)) for a in range(3)]
        padded = jnp.pad(image, pads, mode="edge")
        size = image.shape[axis]
        image = sum(
            weight * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i, weight in enumerate(weights)
        )
    return image


def _resized(images: Array, size: tuple[int, int], method: str) -> Array:
    batch, _, _, channels = images.shape
    return jax.image.resize(images, (batch, *size, channels), RESIZES[method], antialias=True)


def _clipped(images: Array) -> Array:
    return jnp.clip(images, -1.0, 1.0)


def _same(key: Array) -> Array:
    return key
