"""What a network can be conditioned on, as one tree of arrays, and how it is left out.

Leaving a condition out is a value, not another tree: a label of -1, a text with no token, a map
that is not present. So one compiled program serves both halves of classifier-free guidance.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.types import Array

Leaf = Any  # an array of JAX's or NumPy's, or a jax.ShapeDtypeStruct


class Text(NamedTuple):
    """A batch of texts, padded to one length.

    Attributes:
      tokens: (B, L, D) float features of a frozen encoder, or (B, L) int ids for a network that
        learns its own.
      mask: (B, L) bool, True for what is no padding; all False stands for no text.
      pooled: (B, D) one vector a text, or None.
    """

    tokens: Leaf
    mask: Leaf
    pooled: Leaf | None = None


class SpatialMap(NamedTuple):
    """A batch of maps of the images' height and width.

    Attributes:
      values: (B, H, W, C) float.
      present: (B,) bool; False stands for no map.
    """

    values: Leaf
    present: Leaf


class Condition(NamedTuple):
    """Any of them; None for what the network is not conditioned on.

    Attributes:
      label: (B,) int classes, -1 for none.
      text: see `Text`.
      map: see `SpatialMap`.
    """

    label: Leaf | None = None
    text: Text | None = None
    map: SpatialMap | None = None


def drop(condition: Condition, dropped: Array) -> Condition:
    """The condition without what is dropped: dropped (B,) bool.

    >>> drop(Condition(label=jnp.array([3, 4])), jnp.array([True, False])).label.tolist()
    [-1, 4]
    """
    label, text, spatial = condition
    if label is not None:
        label = jnp.where(dropped, -1, label)
    if text is not None:
        text = text._replace(mask=text.mask & ~dropped[:, None])
    if spatial is not None:
        spatial = spatial._replace(present=spatial.present & ~dropped)
    return Condition(label, text, spatial)


def null(condition: Condition) -> Condition:
    """The condition of the same shapes that says nothing: what guidance extrapolates from."""
    batch = len(jax.tree.leaves(condition)[0])
    return drop(condition, jnp.ones(batch, bool))
