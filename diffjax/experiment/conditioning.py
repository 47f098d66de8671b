"""`config.condition`: the text encoder, map and image embedding that a model is conditioned on."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.conditioning import maps
from diffjax.conditioning.conditions import Conditions, Texts
from diffjax.conditioning.super_resolution import super_resolution
from diffjax.data.info import DataInfo
from diffjax.errors import UserError
from diffjax.experiment import augmentation, image_embedding
from diffjax.experiment.spec import from_spec, function_from_spec, is_path
from diffjax.files import cache_folder
from diffjax.models.condition import Text

# (a data set's captions, the vocabulary of a stored run or "") -> Texts
MakeTexts = Callable[[Sequence[str], str], Texts]
# Attributes of a frozen encoder; see `conditioning.text_encoder.TextEncoder`.
_ENCODER = ("name", "width", "length", "tokenise", "encode", "params", "digest")


def _frozen(make: Callable[..., Any]) -> Callable[..., MakeTexts]:
    """A maker of `Texts` from a maker of a pre-trained encoder."""

    def of_options(**options: Any) -> MakeTexts:
        return _by_encoder(make(**options))

    of_options.__signature__ = inspect.signature(make)  # type: ignore[attr-defined]
    return of_options


def _by_encoder(encoder: Any) -> MakeTexts:
    def encode(captions: Sequence[str]) -> Text:
        from diffjax.conditioning.text_encoder import encode_captions

        return Text(*encode_captions(encoder, captions, cache_dir=cache_folder() / "text"))

    texts = Texts(encoder.width, None, encoder.length, encode, encoder.digest)
    return lambda captions, words: texts


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
) -> MakeTexts:
    """A text network trained from scratch, over the words of the training captions."""
    from diffjax.conditioning.transformer import TextTransformer
    from diffjax.conditioning.vocabulary import Vocabulary

    for name, value in (("width", width), ("layers", layers), ("heads", heads), ("length", length)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, not {value!r}")
    if width % heads:
        raise ValueError(f"heads must divide width: {heads} and {width}")

    def of_captions(captions: Sequence[str], words: str) -> Texts:
        vocabulary = (
            Vocabulary.from_json(words) if words else Vocabulary.of(captions, length=length)
        )
        module = TextTransformer(
            vocabulary.size, width=width, layers=layers, heads=heads, length=length
        )

        def encode(texts: Sequence[str]) -> Text:
            return Text(*vocabulary.tokenise(texts))

        stored = vocabulary.to_json()
        identity = hashlib.sha256(stored.encode()).hexdigest()
        return Texts(width, module, length, encode, identity, stored)

    return of_captions


TEXTS: Mapping[str, Callable[..., MakeTexts | None]] = {
    "none": lambda: None,
    "minilm": _frozen(_minilm),
    "clip": _frozen(_clip),
    "t5": _frozen(_t5),
    "transformer": _transformer,
}
MAPS: Mapping[str, Callable[..., maps.MakeMap | None]] = {
    "none": lambda: None,
    "low_resolution": maps.low_resolution,
    "super_resolution": super_resolution,
    "silhouette": maps.silhouette,
    "edges": maps.edges,
}


def conditions(config: Any, about: DataInfo) -> Conditions:
    """The conditions of `config.condition` and `config.model.class_conditional` for a data set.

    Args:
      config: the config.
      about: the data set, with its captions or the stored vocabulary of them.

    Raises:
      UserError: an unknown name, a data set without the labels or captions that the model needs,
        or an encoder that can't be read.
    """
    num_classes = len(about.class_names) if config.model.class_conditional else 0
    if config.model.class_conditional and not num_classes:
        raise UserError(
            f"config.model.class_conditional = True but {config.data.name!r} has no labels (no "
            "class_names): set it to False"
        )
    make_map = _map(config, about)
    if config.condition.keep_map and make_map is None:
        raise UserError(
            "config.condition.keep_map = True but config.condition.map = 'none': set it to False"
        )
    return Conditions(
        num_classes,
        _texts(config, about),
        make_map,
        augmentation.width(config),
        config.condition.keep_map,
        image_embedding.of_run(config, about),
    )


def _texts(config: Any, about: DataInfo) -> Texts | None:
    text = config.condition.text
    made = from_spec(text, TEXTS, key="condition.text")
    if made is None:
        return None
    if not about.has_captions:
        raise UserError(
            f"config.condition.text = {text!r} but {config.data.name!r} has no captions: use a "
            "folder with a metadata.jsonl, or set it to 'none'"
        )
    if is_path(text):
        missing = [name for name in _ENCODER if not hasattr(made, name)]
        if missing:
            raise UserError(
                f"config.condition.text = {text!r} has no {missing[0]!r}: expected a "
                "diffjax.conditioning.text_encoder.TextEncoder"
            )
        made = _by_encoder(made)
    return made(about.captions, about.vocabulary)


def _map(config: Any, about: DataInfo) -> maps.MakeMap | None:
    text = config.condition.map
    make = function_from_spec(text, MAPS, key="condition.map")
    if make is not None and about.images:
        try:
            jax.eval_shape(make, jax.ShapeDtypeStruct((1, *about.shape), jnp.float32))
        except Exception as error:
            if not (is_path(text) or isinstance(error, ValueError)):  # a bug in diffjax
                raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"config.condition.map = {text!r}: {first}") from error
    if make is not None and not about.images:
        raise UserError(
            f"config.condition.map = {text!r} needs images, and {config.data.name!r} holds arrays "
            f"of {about.shape}: set it to 'none'"
        )
    return make
