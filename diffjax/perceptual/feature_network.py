"""The interfaces of frozen networks: of their maps, and of one vector per image."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from diffjax.types import Array


class FeatureNetwork(NamedTuple):
    """A frozen feature network.

    Attributes:
      name: for messages.
      params: its weights, float32.
      apply: (params, images (B, H, W, C) in [-1, 1]) -> maps (B, h, w, features), one per layer;
        it repeats grey images to the network's channels and normalises as in its training.
      weights: non-negative (features,), one vector per layer, for the distance; None weights all
        features equally.
    """

    name: str
    params: Any
    apply: Callable[[Any, Array], Sequence[Array]]
    weights: tuple[Array, ...] | None = None


class EmbeddingNetwork(NamedTuple):
    """A frozen network that turns an image into one vector, for Fréchet distances.

    Attributes:
      name: part of the distance's name: distances in other features do not compare.
      params: its weights, float32.
      apply: (params, images (B, H, W, C) in [-1, 1]) -> (B, dimensions) float32; it repeats grey
        images to the network's channels, resizes and normalises as in its training.
      dimensions: length of a vector.
      digest: of the weights, in hex; equal digests give equal vectors.
    """

    name: str
    params: Any
    apply: Callable[[Any, Array], Array]
    dimensions: int
    digest: str
