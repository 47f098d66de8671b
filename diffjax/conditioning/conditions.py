"""The conditions of a model: labels, texts, maps and image embeddings.

A set's distinct captions are encoded once, and text is added to a batch on the host as rows of
that table. A map is computed from the batch's images, on the device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax import data
from diffjax.conditioning import maps
from diffjax.conditioning.image_embedding import ImageEmbedding
from diffjax.models.condition import Condition, SpatialMap, Text, drop
from diffjax.types import Array


class Texts(NamedTuple):
    """The encoding of texts for the network.

    Attributes:
      width: features per token.
      module: the jointly trained text network; None for a frozen encoder.
      length: number of tokens that texts are padded to.
      encode: N texts -> `Text` on the host; a frozen encoder's results are cached on disk.
      identity: changes with the weights of a frozen encoder, or the words of a trained one.
      vocabulary: `Vocabulary.to_json` of a trained one; "" for a frozen one.
      null: () -> one encoded text, the null condition of a network that is given a text always;
        None for a network with a null condition of its own.
      pooled_width: features of the pooled vector; 0 for none, None for `width`.
    """

    width: int
    module: nn.Module | None
    length: int
    encode: Callable[[Sequence[str]], Text]
    identity: str
    vocabulary: str = ""
    null: Callable[[], Text] | None = None
    pooled_width: int | None = None

    def example(self) -> Text:
        """One text as ShapeDtypeStructs."""
        mask = jax.ShapeDtypeStruct((1, self.length), bool)
        if self.module is not None:
            return Text(jax.ShapeDtypeStruct((1, self.length), jnp.int32), mask)
        tokens = jax.ShapeDtypeStruct((1, self.length, self.width), jnp.float16)
        pooled = self.width if self.pooled_width is None else self.pooled_width
        return Text(
            tokens, mask, jax.ShapeDtypeStruct((1, pooled), jnp.float32) if pooled else None
        )


class Conditions(NamedTuple):
    """All conditions of a model.

    Attributes:
      num_classes: 0 for none.
      texts: None for none.
      make_map: images in [-1, 1] -> maps; None for none.
      augmentation_width: parameters of the augmentation that the network is given in training; 0
        for none. It is no condition of samples, for which they are 0.
      keep_map: whether the map is never dropped, neither in training nor by guidance.
      embedding: of the image itself; None for none.
      unchanged: the augmentation's parameters of an unchanged image; zeros for ().
      controls: number of ControlNets, each of which is given an image.
      image_prompt: images, uint8 (n, H, W, C) of any size, that samples are prompted with, to
        their embeddings, float32 (n, D); None for a network that is given none.
    """

    num_classes: int = 0
    texts: Texts | None = None
    make_map: maps.MakeMap | None = None
    augmentation_width: int = 0
    keep_map: bool = False
    embedding: ImageEmbedding | None = None
    unchanged: tuple[float, ...] = ()
    controls: int = 0
    image_prompt: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def any(self) -> bool:
        """Whether the model has any condition of samples."""
        return bool(self.num_classes or self.texts or self.make_map or self.embedding)

    @property
    def embedding_width(self) -> int:
        """Length of the image embedding at the network's input, 0 for none."""
        return self.embedding.dimensions if self.embedding else 0

    @property
    def any_dropped(self) -> bool:
        """Whether the model has a condition that is dropped in training, and so can guide."""
        dropped_map = self.make_map and not self.keep_map
        return bool(self.num_classes or self.texts or dropped_map or self.embedding)

    @property
    def map_level(self) -> bool:
        """Whether the network is given the noise level of the map."""
        return maps.has_level(self.make_map)

    def example(self, map_shape: tuple[int, ...] | None = None) -> Condition | None:
        """One example's condition as ShapeDtypeStructs; map_shape: (H, W, C), None for none."""
        if not (self.any or self.augmentation_width):
            return None
        label = jax.ShapeDtypeStruct((1,), jnp.int32) if self.num_classes else None
        spatial = None
        if map_shape is not None:
            values = jax.ShapeDtypeStruct((1, *map_shape), jnp.float32)
            log_snr = jax.ShapeDtypeStruct((1,), jnp.float32) if self.map_level else None
            spatial = SpatialMap(values, jax.ShapeDtypeStruct((1,), bool), log_snr)
        augmentation = None
        if self.augmentation_width:
            augmentation = jax.ShapeDtypeStruct((1, self.augmentation_width), jnp.float32)
        embedding = None
        if self.embedding:
            embedding = jax.ShapeDtypeStruct((1, self.embedding_width), jnp.float32)
        text = self.texts and self.texts.example()
        return Condition(label, text, spatial, augmentation, embedding)

    def no_augmentation(self, count: int) -> np.ndarray | None:
        """The augmentation parameters of unchanged images, (count, n); None without any."""
        width = self.augmentation_width
        each = np.asarray(self.unchanged or (0.0,) * width, np.float32)
        return np.tile(each, (count, 1)) if width else None

    def of_batch(self, batch: Mapping[str, Array], spatial: SpatialMap | None) -> Condition | None:
        """The condition of a batch of unchanged images; None for an unconditional model."""
        if not (self.any or self.augmentation_width):
            return None
        text = None
        if self.texts:
            text = Text(batch["text_tokens"], batch["text_mask"], batch.get("text_pooled"))
        label = batch["label"] if self.num_classes else None
        augmentation: Any = batch.get("sizes")
        if augmentation is None:
            augmentation = self.no_augmentation(len(batch["image"]))
        embedding = batch["embedding"] if self.embedding else None
        return Condition(label, text, spatial, augmentation, embedding)

    def dropping(self) -> Callable[[Condition, Array], Condition]:
        """(condition, (B,) bool) -> the condition with null values where the latter is True.

        A network that is given a text always has its null text, which is encoded now: the function
        may be called inside a trace.
        """
        null = self.texts and self.texts.null and self.texts.null()

        def dropped(condition: Condition, at: Array) -> Condition:
            lost = drop(condition, at, keep_map=self.keep_map)
            if null is None or condition.text is None:
                return lost
            text = jax.tree.map(
                lambda kept, none: jnp.where(at.reshape(-1, *(1,) * (kept.ndim - 1)), none, kept),
                condition.text, null,
            )  # fmt: skip
            return lost._replace(text=text)

        return dropped

    def with_text(self, batches: data.BatchIterator, captions: Sequence[str]) -> Any:
        """The batches with their captions' encodings if the model has text, else unchanged."""
        if self.texts is None:
            return batches
        return _WithText(batches, self.texts.encode(captions))


UNCONDITIONAL = Conditions()


class _WithText:
    """Batches with the encoded captions of their examples."""

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
    """The batch with "caption" replaced by those rows of the table."""
    rest: dict[str, Any] = dict(batch)
    rows = rest.pop("caption")
    rest |= {"text_tokens": table.tokens[rows], "text_mask": table.mask[rows]}
    return rest if table.pooled is None else rest | {"text_pooled": table.pooled[rows]}


def broadcast(condition: Any, count: int) -> Any:
    """Repeats a condition of one example `count` times."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), condition)
