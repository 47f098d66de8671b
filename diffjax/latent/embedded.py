"""A data set's images as vectors: embedded once, cached, and normalised."""

import hashlib
from typing import Any, SupportsIndex

import jax
import numpy as np

from diffjax import data
from diffjax.conditioning.image_embedding import BATCH, Fitted, Floats
from diffjax.images import to_model_range
from diffjax.latent.encoded import LatentSource, encoded, take
from diffjax.models.embedding_network import EmbeddingNetwork
from diffjax.types import Array


def features(source: data.ImageSource, network: EmbeddingNetwork) -> LatentSource:
    """A set whose images are a network's features, float16 (N, F), from the cache or computed.

    Raises:
      UserError: features that are not finite.
    """

    def embed(params: Any, images: Array) -> dict[str, Array]:
        with jax.default_matmul_precision("float32"):
            return {"image": network.apply(params, to_model_range(images))}

    key = f"features of {network.name} {network.digest}"
    return encoded(source, embed, network.params, key=key, what=network.name, batch=BATCH)


def normalised(found: LatentSource, fitted: Fitted) -> Floats:
    """float32 (N, D): the embeddings of a set's features."""
    return np.asarray(fitted.normalise(found.images.astype(np.float32)), np.float32)


def vectors(
    source: data.ImageSource, network: EmbeddingNetwork, fitted: Fitted
) -> data.ArraySource:
    """The set with its embeddings as the data, float32 (N, D), and the same labels and captions."""
    found = features(source, network)
    made = data.ArraySource(
        normalised(found, fitted),
        np.asarray(found.labels),
        name=source.name,
        class_names=source.class_names,
        captions=source.captions,
        caption_numbers=found.caption_numbers,
        index_crc32=getattr(source, "index_crc32", None),
    )
    made.held_out = getattr(source, "held_out", None)  # images, embedded where they are read
    return made


def with_embeddings(source: data.ImageSource, each: Floats) -> data.ImageSource:
    """A set whose examples also have "embedding", float32 (D,): row i of `each` for example i."""
    return with_arrays(source, "embedding", each)


def with_arrays(source: data.ImageSource, name: str, each: Any) -> data.ImageSource:
    """A set whose examples also have an array: row i of `each` for example i.

    Args:
      source: the set.
      name: of the array.
      each: an array, or what can be indexed as its first axis can.
    """
    if isinstance(source, data.ArraySource):
        return _InMemory(source, name, each)
    return _Streamed(source, name, each)


class _InMemory(data.ArraySource):
    def __init__(self, source: data.ArraySource, name: str, each: Any) -> None:
        vars(self).update(vars(source))
        self._source, self._key, self._each = source, name, each

    def take(self, rows: SupportsIndex | np.ndarray) -> dict[str, Any]:
        return self._source.take(rows) | {self._key: self._each[rows]}


class _Streamed:
    def __init__(self, source: data.ImageSource, name: str, each: Any) -> None:
        self._source, self._key, self._each = source, name, each
        self.name, self.image_shape, self.dtype = source.name, source.image_shape, source.dtype
        self.class_names, self.captions = source.class_names, source.captions
        self.index_crc32 = getattr(source, "index_crc32", None)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        return self._source[i] | {self._key: self._each[i]}


def digest(source: data.ImageSource) -> str:
    """SHA-256 of a set's images; of a streamed set, of 256 of them and their number."""
    whole = isinstance(source, data.ArraySource)
    rows = np.arange(len(source))
    if not whole:
        rows = np.unique(np.linspace(0, len(source) - 1, 256).astype(int))
    sha256 = hashlib.sha256(f"{len(source)} {source.image_shape}".encode())
    sha256.update(np.ascontiguousarray(take(source, rows)["image"]).tobytes())
    return sha256.hexdigest()
