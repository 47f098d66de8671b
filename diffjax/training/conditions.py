"""What a config's model is conditioned on: labels, texts, maps, as functions and arrays.

Text reaches a batch on the host: the captions of a set are few and encoded once, and a batch takes
its rows. A map is made of the image it belongs to, wherever the pixels are.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax import data
from diffjax.conditioning import maps
from diffjax.errors import UserError
from diffjax.files import cache_folder
from diffjax.models.condition import Condition, SpatialMap, Text
from diffjax.schedules import Array
from diffjax.training.choices import choose


class Texts(NamedTuple):
    """How texts become what the network takes.

    Attributes:
      width: features of a token.
      module: the text network that is trained along, None for a frozen encoder.
      length: tokens a text is padded to.
      encode: N texts -> `Text` on the host, kept in the cache folder where that saves time.
      identity: changes with the weights of a frozen encoder, or the words of a trained one.
    """

    width: int
    module: nn.Module | None
    length: int
    encode: Callable[[Sequence[str]], Text]
    identity: str

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


def _frozen(make: Callable[..., Any]) -> Callable[..., Callable[[Sequence[str]], Texts]]:
    """A maker of `Texts` by an encoder that is trained already."""

    def of_options(**options: Any) -> Callable[[Sequence[str]], Texts]:
        encoder = make(**options)

        def encode(captions: Sequence[str]) -> Text:
            from diffjax.conditioning.text_encoder import encode_captions

            return Text(*encode_captions(encoder, captions, cache_dir=cache_folder() / "text"))

        return lambda captions: Texts(encoder.width, None, encoder.length, encode, encoder.digest)

    of_options.__signature__ = inspect.signature(make)  # type: ignore[attr-defined]
    return of_options


def _minilm(*, length: int = 32) -> Any:
    from diffjax.conditioning.minilm import minilm

    return minilm(length=length)


def _clip(*, folder: str, length: int = 77) -> Any:
    from diffjax.conditioning.clip import clip

    return clip(folder=folder, length=length)


def _t5(*, folder: str, length: int = 64) -> Any:
    from diffjax.conditioning.t5 import t5

    return t5(folder=folder, length=length)


def _transformer(
    *, width: int = 128, layers: int = 2, heads: int = 4, length: int = 16
) -> Callable[[Sequence[str]], Texts]:
    """A text network from scratch, over the words of the set's training captions."""
    from diffjax.conditioning.transformer import TextTransformer
    from diffjax.conditioning.vocabulary import Vocabulary

    for name, value in (("width", width), ("layers", layers), ("heads", heads), ("length", length)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, not {value!r}")
    if width % heads:
        raise ValueError(f"heads must divide width: {heads} and {width}")

    def of_captions(captions: Sequence[str]) -> Texts:
        vocabulary = Vocabulary.of(captions, length=length)
        module = TextTransformer(
            vocabulary.size, width=width, layers=layers, heads=heads, length=length
        )

        def encode(texts: Sequence[str]) -> Text:
            return Text(*vocabulary.tokenise(texts))

        words = hashlib.sha256(vocabulary.to_json().encode()).hexdigest()
        return Texts(width, module, length, encode, words)

    return of_captions


TEXTS: Mapping[str, Callable[..., Callable[[Sequence[str]], Texts] | None]] = {
    "none": lambda: None,
    "minilm": _frozen(_minilm),
    "clip": _frozen(_clip),
    "t5": _frozen(_t5),
    "transformer": _transformer,
}
MAPS: Mapping[str, Callable[..., maps.MakeMap | None]] = {
    "none": lambda: None,
    "low_resolution": maps.low_resolution,
    "silhouette": maps.silhouette,
    "edges": maps.edges,
}


def conditions(config: Any, source: data.ImageSource) -> Conditions:
    """What `config.condition` and `config.model.class_conditional` name, for a data set.

    Raises:
      UserError: an unknown name, a set without labels or captions for a model that needs them, or
        an encoder that can't be read.
    """
    num_classes = len(source.class_names) if config.model.class_conditional else 0
    if config.model.class_conditional and not num_classes:
        raise UserError(
            f"config.model.class_conditional = True but {config.data.name!r} has no labels: set it "
            "to False"
        )
    c = config.condition
    make_texts = choose(c.text, TEXTS, key="condition.text")
    if make_texts is not None and not source.captions:
        raise UserError(
            f"config.condition.text = {c.text!r} but {config.data.name!r} has no captions: take a "
            "folder with a metadata.jsonl, or set it to 'none'"
        )
    texts = make_texts and make_texts(source.captions)
    return Conditions(num_classes, texts, choose(c.map, MAPS, key="condition.map"))


def broadcast(condition: Any, count: int) -> Any:
    """A condition of one example for `count` of them."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), condition)
