"""What a frozen network of features is to whoever uses it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from diffjax.types import Array


class Network(NamedTuple):
    """A frozen network whose maps are compared.

    Attributes:
      name: for messages.
      params: its weights, float32.
      apply: (params, images (B, H, W, C) in [-1, 1]) -> maps (B, h, w, features), one a layer; it
        brings grey images to the channels it wants, and normalises as the network was trained.
      weights: (features,) not negative, a layer, for the distance; None weighs all alike.
    """

    name: str
    params: Any
    apply: Callable[[Any, Array], Sequence[Array]]
    weights: tuple[Array, ...] | None = None
