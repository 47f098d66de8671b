"""The interface of frozen networks that turn an image into one vector."""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffjax.types import Array


class EmbeddingNetwork(NamedTuple):
    """A frozen network that turns an image into one vector: for Fréchet distances, and as the
    image embedding of a prior and a decoder.

    Attributes:
      name: for messages, and part of a distance's name: distances in other features do not compare.
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
