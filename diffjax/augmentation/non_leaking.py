"""Augmentation that does not leak into samples: the network is given what was done to an image.

Karras et al. 2022 (EDM), appendix F.2 and table 6, after Karras et al. 2020 (ADA). A training image
gets a random geometric transformation, and the network gets its parameters a = (a_0, ..., a_8) as a
condition, by a linear map without a bias that is added to the time embedding. Where nothing was
done a = 0, so a = 0 at sampling draws images without any transformation.

    a_0          mirrored left to right                       0 or 1
    a_1          mirrored top to bottom                       0 or 1
    a_2          isotropic scaling by 2^(0.2 a_2)             a_2 ~ N(0, 1)
    a_3, a_4     rotation by theta: cos theta - 1, sin theta  theta ~ U(-pi, pi)
    a_5, a_6     stretch by 2^(0.2 w) along the axis at angle phi, and by 2^(-0.2 w) across it:
                 w cos phi, w sin phi                         w ~ N(0, 1)
    a_7, a_8     translation by 0.125 a_7 widths and 0.125 a_8 heights, both ~ N(0, 1)

Left-right mirroring is always on (probability 1/2), each other one is used with a probability
A_prob, half of it for a_1; phi is 0 for half of the stretches, and uniform for the others. phi is
in (-pi/2, pi/2], where the paper's code has (-pi, pi]: the transformations and the distribution of
a are the same, but there w and phi + pi give the same a as -w and phi, for another transformation.

With centred pixel coordinates p, the transformed image at p is the (mirrored) image at

    q = S^-1 R^-1 A^-1 (p - t),                                                             (1)

S the scaling, R the rotation, A the stretch, t the translation: scaled first, translated last.
Between pixels images are interpolated linearly, and beyond their border they are reflected. The
paper's code interpolates between pixels of a wavelet-upsampled image, which is sharper; as the
network is given a, that too is no property of samples.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Float

from diffjax import rng
from diffjax.checks import checked
from diffjax.types import Array, Images, Indices, PerExample, PRNGKey

PARAMETERS = 9
SCALE_STD = 0.2  # of log2 of the scaling and of the stretch
TRANSLATION_STD = 0.125  # over the image's side
STRETCH_IS_TURNED = 0.5

Parameters = Float[Array, f"batch {PARAMETERS}"]


class Transformation(NamedTuple):
    """A geometric transformation of each image of a batch; zeros are none.

    Attributes:
      flip_x, flip_y: (B,) 0 or 1: mirrored left to right, top to bottom.
      log_scale: (B,) log2 of the scaling over 0.2.
      angle: (B,) of the rotation, in radians, counter-clockwise.
      log_stretch: (B,) log2 of the stretch over 0.2.
      stretch_angle: (B,) of its axis to the x axis, in radians, counter-clockwise.
      shift_x, shift_y: (B,) to the right and downwards, over 0.125 times the side.
    """

    flip_x: PerExample
    flip_y: PerExample
    log_scale: PerExample
    angle: PerExample
    log_stretch: PerExample
    stretch_angle: PerExample
    shift_x: PerExample
    shift_y: PerExample

    def parameters(self) -> Parameters:
        """The network's condition a, (B, 9); see the module."""
        columns = (
            self.flip_x,
            self.flip_y,
            self.log_scale,
            jnp.cos(self.angle) - 1,
            jnp.sin(self.angle),
            self.log_stretch * jnp.cos(self.stretch_angle),
            self.log_stretch * jnp.sin(self.stretch_angle),
            self.shift_x,
            self.shift_y,
        )
        return jnp.stack(columns, axis=-1)


class NonLeaking(NamedTuple):
    """The augmentation of a training run.

    Attributes:
      probability: A_prob of each transformation but left-right mirroring, in [0, 1]. EDM has 0.12
        for CIFAR-10 and 0.15 for FFHQ and AFHQv2 at 64x64.
    """

    probability: float

    @property
    def width(self) -> int:
        """The number of parameters, 9."""
        return PARAMETERS

    def draw(self, key: PRNGKey, indices: Indices) -> Transformation:
        """A random transformation of each example, by its place in the global batch."""
        return sample(key, indices, probability=self.probability)

    def apply(self, x: Images, change: Transformation) -> Images:
        """The transformed images."""
        return transform(x, change)


@checked
def sample(key: PRNGKey, indices: Indices, *, probability: float) -> Transformation:
    """Random transformations (B,), a function of the key and of each example's place alone.

    Args:
      key: the stream's key at this step.
      indices: (B,) places of the examples in the global batch.
      probability: A_prob, in [0, 1].
    """

    def one(key: PRNGKey) -> Array:
        uses, flips, normals, angles = jax.random.split(key, 4)
        used = jax.random.bernoulli(uses, probability, (5,))
        mirrored = jax.random.bernoulli(flips, 0.5, (2,))
        scale, stretch, right, down = jax.random.normal(normals, (4,))
        turn, axis, turned = jax.random.uniform(angles, (3,))
        zero = jnp.zeros(())
        return jnp.stack(
            [
                mirrored[0].astype(jnp.float32),
                (mirrored[1] & used[0]).astype(jnp.float32),
                jnp.where(used[1], scale, zero),
                jnp.where(used[2], math.pi * (2 * turn - 1), zero),
                jnp.where(used[3], stretch, zero),
                jnp.where(used[3] & (turned < STRETCH_IS_TURNED), math.pi * (0.5 - axis), zero),
                jnp.where(used[4], right, zero),
                jnp.where(used[4], down, zero),
            ]
        )

    return Transformation(*rng.per_example(key, indices, one).T)


@checked
def transform(x: Images, change: Transformation) -> Images:
    """The images transformed by equation (1); an image whose parameters are 0 is returned as it is.

    Args:
      x: (B, H, W, C) of any size.
      change: of each image.
    """
    return jax.vmap(_transformed)(x, change)


def _transformed(image: Float[Array, "height width channels"], change: Transformation) -> Array:
    height, width, _ = image.shape
    image = jnp.where(change.flip_x > 0, image[:, ::-1], image)
    image = jnp.where(change.flip_y > 0, image[::-1], image)
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - middle_y, jnp.arange(width) - middle_x, indexing="ij")
    x = x - change.shift_x * TRANSLATION_STD * width
    y = y - change.shift_y * TRANSLATION_STD * height
    x, y = _turned(x, y, -change.stretch_angle)
    stretch = 2.0 ** (SCALE_STD * change.log_stretch)
    x, y = _turned(x / stretch, y * stretch, change.stretch_angle)
    x, y = _turned(x, y, -change.angle)
    scale = 2.0 ** (SCALE_STD * change.log_scale)
    places = [y / scale + middle_y, x / scale + middle_x]
    channels = [
        map_coordinates(c, places, order=1, mode="mirror") for c in jnp.moveaxis(image, -1, 0)
    ]
    return jnp.stack(channels, axis=-1)


def _turned(x: Array, y: Array, angle: Array) -> tuple[Array, Array]:
    """Points turned counter-clockwise as seen, where y points down."""
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x
