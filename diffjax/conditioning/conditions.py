"""What a model is conditioned on: labels, texts, maps, as functions and arrays.

Text reaches a batch on the host: the captions of a set are few and encoded once, and a batch takes
its rows. A map is made of the image it belongs to, wherever the pixels are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax import data
from diffjax.conditioning import maps
from diffjax.models.condition import Condition, SpatialMap, Text
from diffjax.types import Array


class Texts(NamedTuple):
    """How texts become what the network takes.

    Attributes:
      width: features of a token.
      module: the text network that is trained along, None for a frozen encoder.
      length: tokens a text is padded to.
      encode: N texts -> `Text` on the host, kept in the cache folder where that saves time.
      identity: changes with the weights of a frozen encoder, or the words of a trained one.
      vocabulary: the words of a trained one, as text that makes it again; "" for others.
    """

    width: int
    module: nn.Module | None
    length: int
    encode: Callable[[Sequence[str]], Text]
    identity: str
    vocabulary: str = ""

    def example(self) -> Text:
        """One text, in shapes."""
        mask = jax.ShapeDtypeStruct((1, self.length), bool)
        if self.module is not None:
            return Text(jax.ShapeDtypeStruct((1, self.length), jnp.int32), mask)
        tokens = jax.ShapeDtypeStruct((1, self.length, self.width), jnp.float16)
        return Text(tokens, mask, jax.ShapeDtypeStruct((1, self.width), jnp.float32))


class Conditions(NamedTuple):
    """Everything that a model is conditioned on.

    Attributes:
      num_classes: 0 for none.
      texts: None for none.
      make_map: images in [-1, 1] -> maps; None for none.
    """

    num_classes: int = 0
    texts: Texts | None = None
    make_map: maps.MakeMap | None = None

    @property
    def any(self) -> bool:
        """Whether there is a condition at all."""
        return bool(self.num_classes or self.texts or self.make_map)

    def example(self, map_shape: tuple[int, ...] | None = None) -> Condition | None:
        """One example's condition, in shapes; map_shape: (H, W, C) of a map, None for none."""
        if not self.any:
            return None
        label = jax.ShapeDtypeStruct((1,), jnp.int32) if self.num_classes else None
        spatial = None
        if map_shape is not None:
            values = jax.ShapeDtypeStruct((1, *map_shape), jnp.float32)
            spatial = SpatialMap(values, jax.ShapeDtypeStruct((1,), bool))
        return Condition(label, self.texts and self.texts.example(), spatial)

    def of_batch(self, batch: Mapping[str, Array], map_values: Array | None) -> Condition | None:
        """A training batch's condition; None for an unconditional model."""
        if not self.any:
            return None
        text = None
        if self.texts:
            text = Text(batch["text_tokens"], batch["text_mask"], batch.get("text_pooled"))
        spatial = None
        if map_values is not None:
            spatial = SpatialMap(map_values, jnp.ones(len(map_values), bool))
        return Condition(batch["label"] if self.num_classes else None, text, spatial)

    def with_text(self, batches: data.BatchIterator, captions: Sequence[str]) -> Any:
        """The batches with their captions' encodings, where the model has text."""
        if self.texts is None:
            return batches
        return _WithText(batches, self.texts.encode(captions))


UNCONDITIONAL = Conditions()


class _WithText:
    """Batches that carry rows of an encoded table."""

    def __init__(self, batches: data.BatchIterator, table: Text) -> None:
        self._batches = batches
        self._table = table

    def __iter__(self) -> "_WithText":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return add_text(next(self._batches), self._table)

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)


def add_text(batch: Mapping[str, np.ndarray], table: Text) -> dict[str, np.ndarray]:
    """A batch with its captions' rows of a table in place of their numbers."""
    rest: dict[str, Any] = dict(batch)
    rows = rest.pop("caption")
    rest |= {"text_tokens": table.tokens[rows], "text_mask": table.mask[rows]}
    return rest if table.pooled is None else rest | {"text_pooled": table.pooled[rows]}


def broadcast(condition: Any, count: int) -> Any:
    """A condition of one example for `count` of them."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), condition)
