"""The interfaces of frozen networks: of their maps, and of one vector per image."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from diffjax.models.embedding_network import EmbeddingNetwork
from diffjax.types import Array

__all__ = ["EmbeddingNetwork", "FeatureNetwork"]


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
