"""An image as one vector of about unit variance: what a diffusion prior draws and its decoder is
given (Ramesh et al. 2022, "Hierarchical text-conditional image generation with CLIP latents").

    image x --network--> features f --normalise--> z

Any `EmbeddingNetwork` serves. Of f, the principal components are whitened,

    z = (f - mean) V diag(1 / sqrt(lambda)),     f's covariance = V diag(lambda) V^T

with the D largest lambda; or, for an embedding that has a metric of its own such as CLIP's,
z = sqrt(D) f / |f|. Noise schedules assume the unit variance that both have.

A text has a place in the same space, by a linear map of its pooled encoding: CLIP's own, or one
that is fitted to the training set's pairs. It chooses between two samples of a prior, is the
baseline of the prior, and gives the direction from one caption to another.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError
from diffjax.images import to_model_range
from diffjax.models.embedding_network import EmbeddingNetwork
from diffjax.progress import Bar
from diffjax.types import Array

Floats = npt.NDArray[np.float32]
BATCH = 32  # images are resized to hundreds of pixels a side inside an embedding network
# Variances below this share of the largest are rounding errors of the features.
LEAST_VARIANCE = 1e-7
ROWS = 8192
RIDGES = tuple(10.0**k for k in range(-6, 3))


class Affine(NamedTuple):
    """x -> (x - mean) kernel + bias; mean (F,), kernel (F, D), bias (D,), float32."""

    mean: Floats
    kernel: Floats
    bias: Floats

    def __call__(self, x: Any) -> Any:
        return (x - self.mean) @ self.kernel + self.bias


def fit_whitening(features: np.ndarray, *, dimensions: int) -> Affine:
    """The whitened principal components of features.

    Args:
      features: (N, F).
      dimensions: D, the number of components, those of the largest variance first. Of each the
        largest weight is positive, so that equal data give equal signs.

    Raises:
      ValueError: the features vary in fewer directions than D.
    """
    mean = np.asarray(np.mean(features, 0, np.float64))
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), ROWS):  # features of a large set are read from disk
        x = features[start : start + ROWS] - mean
        covariance += x.T @ x / len(features)
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    varying = int((variances > LEAST_VARIANCE * max(variances[0], 0.0)).sum())
    varying = min(varying, len(features) - 1)
    if dimensions > varying:
        raise ValueError(
            f"dimensions must be at most {varying} for {len(features)} images of {len(mean)} "
            f"features, not {dimensions}"
        )
    kept = vectors[:, :dimensions]
    kept = kept * np.sign(kept[np.abs(kept).argmax(0), np.arange(dimensions)])
    kernel = kept / np.sqrt(variances[:dimensions])
    return _affine(mean, kernel, np.zeros(dimensions))


def fit_text_projection(pooled: np.ndarray, embeddings: np.ndarray) -> Affine:
    """The ridge regression of images' embeddings on their captions' pooled encodings.

    The penalty is that of the smallest generalised cross-validation score (Golub, Heath & Wahba
    1979), |(I - A) z|^2 / tr(I - A)^2 for the fit A z.

    Args:
      pooled: (N, P) of the captions.
      embeddings: (N, D) of the images.
    """
    x, z = np.asarray(pooled, np.float64), np.asarray(embeddings, np.float64)
    mean, bias = x.mean(0), z.mean(0)
    x, z = x - mean, z - bias
    # In the basis of the right singular vectors of x = U diag(scales) V^T.
    squares, vectors = np.linalg.eigh(x.T @ x)
    kept = squares > 1e-12 * max(squares.max(), 1e-30)
    squares, vectors = squares[kept], vectors[:, kept]
    scales = np.sqrt(squares)
    uz = vectors.T @ (x.T @ z) / scales[:, None]
    outside = np.square(z).sum() - np.square(uz).sum()

    def shrunk(ridge: float) -> np.ndarray:
        shares: np.ndarray = squares / (squares + ridge * squares.max(initial=0.0))
        return shares

    def score(ridge: float) -> float:
        shares = shrunk(ridge)
        error = outside + np.square((1 - shares)[:, None] * uz).sum()
        free = len(x) - 1 - shares.sum()
        return float(error / free**2) if free > 0 else np.inf

    shares = shrunk(min(RIDGES, key=score))
    kernel = vectors @ ((shares / scales)[:, None] * uz)
    return _affine(mean, kernel, bias)


def _affine(mean: Any, kernel: Any, bias: Any) -> Affine:
    return Affine(*(np.asarray(array, np.float32) for array in (mean, kernel, bias)))


class Fitted(NamedTuple):
    """What an embedding is besides its network's weights: stored with a run that uses it.

    Attributes:
      name: of the network.
      digest: of its weights.
      data: of the images that it was fitted to.
      dimensions: D, length of a vector.
      whitening: features -> z; None for sqrt(D) f / |f|.
      text: pooled encoding of a text -> its place in the space; None without captions or a frozen
        text encoder.
    """

    name: str
    digest: str
    data: str
    dimensions: int
    whitening: Affine | None = None
    text: Affine | None = None

    @property
    def identity(self) -> str:
        """SHA-256 of the network, the dimensions and the data: equal ones mean equal spaces.

        The arrays are functions of these up to rounding, which differs between devices.
        """
        parts = [self.digest, self.data if self.whitening else "", self.dimensions]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def normalise(self, features: Any) -> Any:
        """Features (B, F) -> z (B, D)."""
        if self.whitening is not None:
            return self.whitening(features)
        length = jnp.linalg.norm(features, axis=-1, keepdims=True)
        return features * (self.dimensions**0.5 / jnp.maximum(length, 1e-12))

    def of_text(self, pooled: Any) -> Array:
        """Pooled encodings (B, P) -> their places in the space, (B, D).

        Raises:
          UserError: no projection was fitted.
        """
        if self.text is None:
            raise UserError(
                "this run has no projection of texts into its embeddings' space: train it with "
                "captions and a frozen text encoder, such as config.condition.text = 'minilm'"
            )
        return jnp.asarray(self.text(jnp.asarray(pooled)))

    def to_json(self) -> str:
        """All fields; arrays in base64."""
        kept = self._asdict() | {
            name: part and {k: _packed(array) for k, array in part._asdict().items()}
            for name, part in (("whitening", self.whitening), ("text", self.text))
        }
        return json.dumps(kept)

    @classmethod
    def from_json(cls, text: str) -> Fitted:
        """The inverse of `to_json`.

        Raises:
          UserError: a text of another format.
        """
        try:
            stored: dict[str, Any] = json.loads(text)
            parts = {
                name: stored[name] and Affine(**{k: _array(v) for k, v in stored[name].items()})
                for name in ("whitening", "text")
            }
            return cls(**(stored | parts))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UserError(
                f"the stored image embedding can't be read ({error!r}): use another checkpoint"
            ) from error


def _packed(array: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(array, np.float32).tobytes()
    return {"shape": list(array.shape), "float32": base64.b64encode(content).decode()}


def _array(stored: Mapping[str, Any]) -> Floats:
    content = base64.b64decode(stored["float32"], validate=True)
    return np.frombuffer(content, np.float32).reshape(stored["shape"])


class ImageEmbedding(NamedTuple):
    """An embedding network with what was fitted for it."""

    network: EmbeddingNetwork
    fitted: Fitted

    @property
    def dimensions(self) -> int:
        """D."""
        return self.fitted.dimensions

    def of_images(self, images: np.ndarray) -> Floats:
        """uint8 (N, H, W, C) -> float32 (N, D), in batches of one size."""
        return np.asarray(self.fitted.normalise(features_of(self.network, images)), np.float32)


def features_of(network: EmbeddingNetwork, images: np.ndarray) -> Floats:
    """A network's features of images: uint8 (N, H, W, C) -> float32 (N, F).

    As features of a cached training set are, they are rounded to float16.

    Raises:
      UserError: images that the network does not take.
    """
    found = []
    with Bar(f"features of {network.name}", len(images), at_once=BATCH) as bar:
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            padded = np.concatenate([part, np.repeat(part[:1], BATCH - len(part), axis=0)])
            found.append(np.asarray(_features(network.apply, network.params, padded))[: len(part)])
            bar(start + BATCH)
    return np.concatenate(found).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def _features(apply: Any, params: Any, images: Any) -> Array:
    with jax.default_matmul_precision("float32"):
        return apply(params, to_model_range(images)).astype(jnp.float16)


def check_network(network: EmbeddingNetwork, shape: tuple[int, ...]) -> None:
    """Traces a network for images of a shape (H, W, C); nothing is computed.

    Raises:
      ValueError: images that it does not take, or an output of another shape than it says.
    """
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    found = jax.eval_shape(network.apply, network.params, images)
    expected = (1, network.dimensions)
    if getattr(found, "shape", None) != expected:
        raise ValueError(
            f"{network.name} returns {getattr(found, 'shape', type(found).__name__)} for images of "
            f"{images.shape}, not {expected} as its dimensions say"
        )


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of rows: (N, D), (M, D) -> (N, M)."""

    def unit(x: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(x, axis=-1, keepdims=True)
        scaled: np.ndarray = x / np.maximum(lengths, 1e-12)
        return scaled

    similarities: np.ndarray = unit(np.asarray(a)) @ unit(np.asarray(b)).T
    return similarities
