"""Encoding and decoding large images in tiles.

The network's memory is then that of one tile. XLA's temporary buffers for Stable Diffusion's
autoencoder, one image of 1024x1024 in float32, compiled for a CPU: decoding takes 3.0 GiB whole and
0.8 GiB in tiles of 64 latents, encoding 2.1 and 0.4 GiB.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from diffjax.types import Array


def decode_tiled(
    decode: Callable[[Array], Array],
    z: Array,
    *,
    size: tuple[int, int],
    tile: int,
    factor: int,
    overlap: int | None = None,
) -> Array:
    """Decodes overlapping tiles and blends them where they overlap.

    Tiles have one shape and are decoded sequentially by one compiled program. Blending weights rise
    linearly over the overlap and sum to 1. Attention in the decoder is restricted to a tile, so
    results differ from those of decoding the whole map.

    Args:
      decode: (B, tile, tile, c) -> (B, factor tile, factor tile, C).
      z: (B, h, w, c).
      size: (H, W) of the images; factor h and factor w, or less by under a factor.
      tile: side of a tile in latents, at most that of z.
      factor: pixels per latent along a side.
      overlap: latents shared by neighbouring tiles; a quarter of the tile by default.

    Returns:
      (B, H, W, C).

    Raises:
      ValueError: overlap outside of [0, tile).
    """
    units = (z.shape[1], z.shape[2])
    whole = _blended(decode, z, units, tile=tile, overlap=overlap, inside=1, outside=factor)
    return whole[:, : size[0], : size[1]]


def encode_tiled(
    encode: Callable[[Array], Array],
    images: Array,
    *,
    tile: int,
    factor: int,
    overlap: int | None = None,
) -> Array:
    """Encodes overlapping tiles of images and blends the results, as `decode_tiled` does.

    Args:
      encode: (B, factor tile, factor tile, C) -> (B, tile, tile, c).
      images: (B, H, W, C), padded by their last pixels to multiples of the factor.
      tile, factor, overlap: as for `decode_tiled`.

    Returns:
      (B, ceil(H / factor), ceil(W / factor), c).

    Raises:
      ValueError: overlap outside of [0, tile).
    """
    height, width = images.shape[1:3]
    images = jnp.pad(
        images, ((0, 0), (0, -height % factor), (0, -width % factor), (0, 0)), mode="edge"
    )
    units = (images.shape[1] // factor, images.shape[2] // factor)
    return _blended(encode, images, units, tile=tile, overlap=overlap, inside=factor, outside=1)


def _blended(
    run: Callable[[Array], Array],
    x: Array,
    units: tuple[int, int],
    *,
    tile: int,
    overlap: int | None,
    inside: int,
    outside: int,
) -> Array:
    """Runs a network on tiles and blends its results.

    Args:
      run: (B, inside tile, inside tile, C) -> (B, outside tile, outside tile, D).
      x: (B, inside rows, inside columns, C).
      units: (rows, columns), in latents.
      tile, overlap: in latents.
      inside, outside: pixels a latent of x and of the result.
    """
    overlap = tile // 4 if overlap is None else overlap
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be in [0, {tile}), not {overlap}")
    high, wide = min(tile, units[0]), min(tile, units[1])
    corners = [
        (top, left)
        for top in _starts(units[0], tile, overlap)
        for left in _starts(units[1], tile, overlap)
    ]

    def place(corner: tuple[int, int], scale: int) -> tuple[slice, slice]:
        top, left = (scale * start for start in corner)
        return slice(top, top + scale * high), slice(left, left + scale * wide)

    parts = jax.lax.map(run, jnp.stack([x[:, *place(corner, inside)] for corner in corners]))
    ramp = _ramp(high, overlap, outside)[:, None] * _ramp(wide, overlap, outside)[None, :]
    size = (outside * units[0], outside * units[1])
    total = jnp.zeros((len(x), *size, parts.shape[-1]))
    weight = jnp.zeros((*size, 1))
    for part, corner in zip(parts, corners, strict=True):
        where = place(corner, outside)
        total = total.at[:, *where].add(part * ramp[..., None])
        weight = weight.at[where].add(ramp[..., None])
    return total / weight


def _starts(length: int, tile: int, overlap: int) -> Sequence[int]:
    """The first indices of tiles; the last tile ends at `length`."""
    if length <= tile:
        return (0,)
    return (*range(0, length - tile, tile - overlap), length - tile)


def _ramp(length: int, overlap: int, factor: int) -> Array:
    """Blending weights along a tile's side, rising over the overlap at both ends."""
    place = jnp.arange(length * factor) + 0.5
    edge = max(overlap * factor, 1)
    return jnp.minimum(jnp.minimum(place, place[::-1]) / edge, 1.0)
