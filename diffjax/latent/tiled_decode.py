"""Decoding large latents in tiles, in memory independent of the image's size."""

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
    overlap = tile // 4 if overlap is None else overlap
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be in [0, {tile}), not {overlap}")
    rows = _starts(z.shape[1], tile, overlap)
    columns = _starts(z.shape[2], tile, overlap)
    high, wide = min(tile, z.shape[1]), min(tile, z.shape[2])
    corners = [(top, left) for top in rows for left in columns]
    tiles = jnp.stack([z[:, top : top + high, left : left + wide] for top, left in corners])
    parts = jax.lax.map(decode, tiles)
    ramp = _ramp(high, overlap, factor)[:, None] * _ramp(wide, overlap, factor)[None, :]
    whole = (factor * z.shape[1], factor * z.shape[2])
    total = jnp.zeros((len(z), *whole, parts.shape[-1]))
    weight = jnp.zeros((*whole, 1))
    for part, (top, left) in zip(parts, corners, strict=True):
        place = (
            slice(factor * top, factor * (top + high)),
            slice(factor * left, factor * (left + wide)),
        )
        total = total.at[:, *place].add(part * ramp[..., None])
        weight = weight.at[place].add(ramp[..., None])
    return (total / weight)[:, : size[0], : size[1]]


def _starts(length: int, tile: int, overlap: int) -> Sequence[int]:
    """The first indices of tiles; the last tile ends at `length`."""
    if length <= tile:
        return (0,)
    return (*range(0, length - tile, tile - overlap), length - tile)


def _ramp(length: int, overlap: int, factor: int) -> Array:
    """Blending weights of a tile's pixels along a side, rising over the overlap at both ends."""
    place = jnp.arange(length * factor) + 0.5
    edge = max(overlap * factor, 1)
    return jnp.minimum(jnp.minimum(place, place[::-1]) / edge, 1.0)
