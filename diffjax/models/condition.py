"""A network's conditions as one tree of arrays, and their null values.

A null condition has the same tree, with a label of -1, a text mask of False, or a map that is not
present, or an image embedding of zeros. So classifier-free guidance needs one compiled program for
both predictions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.types import Array

Leaf = Any  # a JAX or NumPy array, or a jax.ShapeDtypeStruct


class Text(NamedTuple):
    """A batch of texts, padded to one length.

    Attributes:
      tokens: (B, L, D) float features of a frozen encoder, or (B, L) int ids for a jointly trained
        one.
      mask: (B, L) bool, True at non-padding tokens; all False is the null condition.
      pooled: (B, D), one vector per text, or None.
    """

    tokens: Leaf
    mask: Leaf
    pooled: Leaf | None = None


class SpatialMap(NamedTuple):
    """A batch of maps of the images' height and width.

    Attributes:
      values: (B, H, W, C) float.
      present: (B,) bool; False is the null condition.
      log_snr: (B,) float, the log-SNR of maps that noise was added to; None for other maps.
    """

    values: Leaf
    present: Leaf
    log_snr: Leaf | None = None


class Control(NamedTuple):
    """Images that ControlNets are given; no null condition changes them.

    Attributes:
      images: one (B, H, W, C) float in [0, 1] for each ControlNet, of the result's size.
      scale: (B, number of ControlNets) float, by which what they add is multiplied.
    """

    images: tuple[Leaf, ...]
    scale: Leaf


class Condition(NamedTuple):
    """A network's conditions; None for those that it does not have.

    Attributes:
      label: (B,) int classes, -1 for none.
      text: see `Text`.
      map: see `SpatialMap`.
      augmentation: (B, n) float, the parameters of the augmentation that was done to the images
        (`augmentation.non_leaking`); zeros for none, as always at sampling.
      embedding: (B, D) float, an image embedding, zeros for none.
      control: see `Control`.
    """

    label: Leaf | None = None
    text: Text | None = None
    map: SpatialMap | None = None
    augmentation: Leaf | None = None
    embedding: Leaf | None = None
    control: Control | None = None


def drop(condition: Condition, dropped: Array, *, keep_map: bool = False) -> Condition:
    """The condition with null values where dropped (B,) bool is True.

    Augmentation parameters stay: they describe what was done to an image, whatever it shows. So
    do images of control, and the image embedding, which `drop_embedding` drops by itself.

    Args:
      condition: of a batch.
      dropped: (B,) bool.
      keep_map: whether maps stay as well, as the low-resolution image of a cascade does.

    >>> drop(Condition(label=jnp.array([3, 4])), jnp.array([True, False])).label.tolist()
    [-1, 4]
    """
    label, text, spatial, *rest = condition
    if label is not None:
        label = jnp.where(dropped, -1, label)
    if text is not None:
        text = text._replace(mask=text.mask & ~dropped[:, None])
    if spatial is not None and not keep_map:
        spatial = spatial._replace(present=spatial.present & ~dropped)
    return Condition(label, text, spatial, *rest)


def drop_embedding(condition: Condition, dropped: Array) -> Condition:
    """The condition with an image embedding of zeros where dropped (B,) bool is True."""
    if condition.embedding is None:
        return condition
    kept = jnp.where(dropped[:, None], 0.0, condition.embedding)
    return condition._replace(embedding=kept)


def is_null(condition: Condition, *, keep_map: bool = False) -> Array:
    """(B,) bool: whether an example's condition is the null condition already.

    >>> is_null(Condition(label=jnp.array([3, -1]))).tolist()
    [False, True]
    """
    of_null = null(condition, keep_map=keep_map)
    batch = len(jax.tree.leaves(condition)[0])
    same = jax.tree.map(
        lambda a, b: (a == b).reshape(batch, -1).all(1) if a.ndim else a == b, condition, of_null
    )
    return jnp.stack(jax.tree.leaves(same)).all(0)


def null(condition: Condition, *, keep_map: bool = False) -> Condition:
    """The null condition of the same shapes, as used by classifier-free guidance."""
    batch = len(jax.tree.leaves(condition)[0])
    everywhere = jnp.ones(batch, bool)
    return drop_embedding(drop(condition, everywhere, keep_map=keep_map), everywhere)
