"""`config.data.embedding` and `config.condition.embedding`: an image as one vector.

    data.embedding        the vectors are the data, x_0 of a diffusion prior
    condition.embedding   the network is given the vector of its own image, as a decoder is

Both are fitted to the training set in the same way, so that runs on the same images have the same
embedding; what was fitted is stored in each checkpoint with the description of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffjax import data
from diffjax.conditioning import image_embedding
from diffjax.conditioning.conditions import Conditions, Texts
from diffjax.conditioning.image_embedding import Fitted, ImageEmbedding
from diffjax.data.info import DataInfo
from diffjax.errors import UserError
from diffjax.experiment.evaluation import FEATURES
from diffjax.experiment.spec import from_spec, is_path, parse_spec
from diffjax.files import expanded
from diffjax.latent import embedded
from diffjax.models.embedding_network import EmbeddingNetwork

DATA, CONDITION = "data.embedding", "condition.embedding"


def _clip(*, folder: str) -> EmbeddingNetwork:
    from diffjax.conditioning.clip_image import clip_image

    return clip_image(folder=folder)


EMBEDDINGS: Mapping[str, Callable[..., EmbeddingNetwork | None]] = {
    "none": lambda: None,
    "efficientnet_lite0": FEATURES["efficientnet_lite0"],
    "clip": _clip,
    "inception": FEATURES["inception"],
}


def key_of(config: Any) -> str:
    """The key that names an embedding; "" for none.

    Raises:
      UserError: both keys do, or the training images are changed after they are embedded.
    """
    keys = [key for key in (DATA, CONDITION) if _text(config, key) != "none"]
    if len(keys) == 2:
        raise UserError(
            f"config.{DATA} and config.{CONDITION} are both set: a prior draws embeddings, and a "
            "decoder is given them: set one to 'none'"
        )
    if not keys:
        return ""
    for key, value, none in (
        ("data.flip", config.data.flip, False),
        ("data.augment", tuple(config.data.augment), ()),
        ("diffusion.augment", config.diffusion.augment, "none"),
    ):
        if value != none:
            raise UserError(
                f"config.{key} = {value!r}: config.{keys[0]} embeds each image once, as it is: set "
                f"it to {none!r}"
            )
    return keys[0]


def network(config: Any) -> EmbeddingNetwork | None:
    """The network of the config's embedding, or None.

    Raises:
      UserError: an unknown name or path, or weights that are missing or can't be read.
    """
    key = key_of(config)
    if not key:
        return None
    text = _text(config, key)
    made = from_spec(text, EMBEDDINGS, key=key)
    if is_path(text) and not all(hasattr(made, name) for name in EmbeddingNetwork._fields):
        raise UserError(
            f"config.{key} = {text!r} is a {type(made).__name__}: expected a "
            "diffjax.models.embedding_network.EmbeddingNetwork"
        )
    return made


def fitted(config: Any, source: data.ImageSource) -> tuple[data.ImageSource, DataInfo]:
    """The training set as it is diffused, and its description with what was fitted to it.

    Of `data.embedding` the set's images are replaced by their vectors.

    Raises:
      UserError: data that are not images, images that the network does not take, or more
        dimensions than they vary in.
    """
    found, about = network(config), data.describe(source)
    if found is None:
        return source, about
    key = key_of(config)
    what = f"config.{key} = {_text(config, key)!r}"
    if not about.images:
        raise UserError(
            f"{what} embeds images, and {config.data.name!r} holds arrays of {about.shape}: set it "
            "to 'none'"
        )
    try:
        image_embedding.check_network(found, about.shape)
    except Exception as error:
        if not (is_path(_text(config, key)) or isinstance(error, ValueError)):  # a bug in diffjax
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{what}: {first}") from error
    dimensions, whitening = config.embedding.dimensions, None
    if dimensions:
        features = embedded.features(source, found).images
        try:
            whitening = image_embedding.fit_whitening(features, dimensions=dimensions)
        except ValueError as error:
            raise UserError(f"config.embedding.dimensions = {dimensions}: {error}") from error
    fit = Fitted(
        found.name, found.digest, embedded.digest(source), dimensions or found.dimensions, whitening
    )
    if key == DATA:
        source = embedded.vectors(source, found, fit)
        about = data.describe(source)
    return source, about._replace(embedding=fit.to_json())


def with_text(
    config: Any, source: data.ImageSource, about: DataInfo, conditions: Conditions
) -> tuple[DataInfo, Conditions]:
    """The description and the conditions with the place of texts among the embeddings.

    It is fitted if the set has captions and the text encoder is frozen. Of a whole CLIP, whose
    texts and images are in one space, it is CLIP's own.

    Args:
      config: the config.
      source: of `fitted`: vectors, or images.
      about, conditions: of that source.
    """
    texts = conditions.texts
    if not about.embedding or texts is None or texts.module is not None:
        return about, conditions
    fit = Fitted.from_json(about.embedding)
    place = _of_clip(config, texts.width)
    if place is None and conditions.embedding is None:
        assert isinstance(source, data.ArraySource)
        place = _projection(texts, source.captions, source.caption_numbers, source.images)
    elif place is None and conditions.embedding is not None:
        found = embedded.features(source, conditions.embedding.network)
        each = embedded.normalised(found, fit)
        place = _projection(texts, source.captions, found.caption_numbers, each)
    fit = fit._replace(text=place)
    if conditions.embedding is not None:
        conditions = conditions._replace(embedding=conditions.embedding._replace(fitted=fit))
    return about._replace(embedding=fit.to_json()), conditions


def _of_clip(config: Any, width: int) -> image_embedding.Affine | None:
    """CLIP's own projection of texts, if its text and image models are those of one folder."""
    key = key_of(config)
    image, text = (
        parse_spec(_text(config, name), key=name) for name in (key, "condition.text")
    )  # fmt: skip
    folders = {str(expanded(spec.arguments.get("folder", ""))) for spec in (image, text)}
    if {image.path, text.path} != {"clip"} or len(folders) > 1 or config.embedding.dimensions:
        return None
    from diffjax.conditioning.clip_image import text_projection

    kernel = text_projection(folders.pop(), width=width)
    zeros = (np.zeros(size, np.float32) for size in kernel.shape)
    return image_embedding.Affine(next(zeros), kernel, next(zeros))


def _projection(
    texts: Texts, captions: tuple[str, ...], numbers: np.ndarray | None, each: np.ndarray
) -> image_embedding.Affine:
    pooled = texts.encode(captions).pooled
    assert pooled is not None and numbers is not None
    return image_embedding.fit_text_projection(np.asarray(pooled)[numbers], each)


def of_run(config: Any, about: DataInfo) -> ImageEmbedding | None:
    """The embedding that the config's network is given, as it was fitted; None for none.

    Raises:
      UserError: it was fitted for another network than the config's, or not at all.
    """
    if _text(config, CONDITION) == "none":
        return None
    found = network(config)
    assert found is not None
    fit = Fitted.from_json(about.embedding) if about.embedding else None
    if fit is None or fit.digest != found.digest:
        raise UserError(
            f"config.{CONDITION} = {_text(config, CONDITION)!r} is another embedding function than "
            f"the one that the run was trained with, {fit.name if fit else 'none'}: use the same "
            "weights"
        )
    return ImageEmbedding(found, fit)


def held_out(config: Any, source: data.ImageSource, about: DataInfo) -> data.ImageSource:
    """Held-out images as they are diffused: of `data.embedding`, their vectors."""
    if _text(config, DATA) == "none":
        return source
    found = network(config)
    assert found is not None
    return embedded.vectors(source, found, Fitted.from_json(about.embedding))


def with_vectors(
    source: data.ImageSource, images: data.ImageSource, embedding: ImageEmbedding | None
) -> data.ImageSource:
    """A source of batches whose examples also have the embeddings of their images, if any."""
    if embedding is None:
        return source
    found = embedded.features(images, embedding.network)
    return embedded.with_embeddings(source, embedded.normalised(found, embedding.fitted))


def identity(about: DataInfo) -> str:
    """The identity of a run's embedding; "" for none."""
    return Fitted.from_json(about.embedding).identity if about.embedding else ""


def _text(config: Any, key: str) -> str:
    section, name = key.split(".")
    text: str = config[section][name].strip()
    return text
