"""Masks for the training of inpainting: rectangles, strokes of a brush, and nothing known at all.

Stable Diffusion's inpainting networks were trained on synthetic masks of wide strokes and boxes, as
those of Suvorov et al. 2022 ("LaMa", section 2.3), and in a quarter of the examples on an image of
which all is masked, so that they draw from a text alone as well.
"""

import jax
import jax.numpy as jnp

from diffjax.types import Array

WHOLE = 0.25
RECTANGLES, VERTICES = 4, 6
# Of a rectangle's sides, as shares of the image's, and of a brush, as shares of the shorter side.
SIDES, BRUSH = (0.1, 0.6), (0.08, 0.25)


def known(key: Array, size: tuple[int, int]) -> Array:
    """A mask (H, W, 1), float32: 1 where pixels are known, 0 where they are to be drawn."""
    whole, which, first, second = jax.random.split(key, 4)
    drawn = jnp.where(jax.random.bernoulli(which), rectangles(first, size), strokes(second, size))
    drawn |= jax.random.uniform(whole) < WHOLE
    return 1.0 - drawn[..., None].astype(jnp.float32)


def rectangles(key: Array, size: tuple[int, int]) -> Array:
    """(H, W) bool: the union of one to four rectangles, which may reach over the edges."""
    of_count, of_sides, of_centres = jax.random.split(key, 3)
    sides = jax.random.uniform(of_sides, (RECTANGLES, 2), minval=SIDES[0], maxval=SIDES[1])
    centres = jax.random.uniform(of_centres, (RECTANGLES, 2))
    away = jnp.abs(_places(size)[:, :, None] / jnp.array(size) - centres)
    inside = (away <= sides / 2).all(-1)
    return (inside & _first(of_count, RECTANGLES)).any(-1)


def strokes(key: Array, size: tuple[int, int]) -> Array:
    """(H, W) bool: a brush drawn along one to five lines from point to point."""
    of_count, of_width, of_points = jax.random.split(key, 3)
    shorter = min(size)
    radius = shorter / 2 * jax.random.uniform(of_width, minval=BRUSH[0], maxval=BRUSH[1])
    points = jax.random.uniform(of_points, (VERTICES, 2)) * jnp.array(size)
    start, along = points[:-1], points[1:] - points[:-1]
    # The nearest point of each line: start + share * along, with the share in [0, 1].
    offset = _places(size)[:, :, None] - start
    length = jnp.maximum(jnp.square(along).sum(-1), 1e-6)
    share = jnp.clip((offset * along).sum(-1) / length, 0.0, 1.0)
    distance = jnp.linalg.norm(offset - share[..., None] * along, axis=-1)
    return ((distance <= radius) & _first(of_count, VERTICES - 1)).any(-1)


def _places(size: tuple[int, int]) -> Array:
    """(H, W, 2): row and column of each pixel's centre."""
    rows, columns = (jnp.arange(side) + 0.5 for side in size)
    return jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)


def _first(key: Array, most: int) -> Array:
    """(most,) bool: whether each of `most` shapes is drawn, one or more of them."""
    return jnp.arange(most) < jax.random.randint(key, (), 1, most + 1)
