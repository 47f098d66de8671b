"""From pixels to features, and to predicted classes where the features are a classifier's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.evaluation.labelled_images import (
    Images,
    LabelledImages,
    check_labelled,
    read_in_order,
)
from diffjax.models.classifier import Classifier
from diffjax.perceptual import EmbeddingNetwork
from diffjax.perceptual.classifier_weights import TrainedClassifier
from diffjax.progress import Bar

# One compiled program serves any number of images.
FEATURE_BATCH = 500

# Images are resized to hundreds of pixels a side inside an embedding network.
EMBEDDING_BATCH = 32

FeatureFunction = Callable[[Images], tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]]


class Features(NamedTuple):
    """The features that a Fréchet distance is measured in.

    Attributes:
      name: "classifier" or an `EmbeddingNetwork`'s.
      digest: of the network's weights, in hex.
      dimensions: length of a feature vector.
      of_images: uint8 (N, H, W, C) -> features float32 (N, dimensions), and the predicted classes
        int32 (N,) of a classifier, or None.
    """

    name: str
    digest: str
    dimensions: int
    of_images: Callable[[Images], tuple[npt.NDArray[np.float32], npt.NDArray[np.int32] | None]]


def embedding_features(network: EmbeddingNetwork, image_shape: tuple[int, ...]) -> Features:
    """An embedding network's features of images of one shape.

    Args:
      network: the network.
      image_shape: (H, W, C), H and W of any size; C is 1 or 3.

    Raises:
      UserError: a shape that the network does not take, or, from `of_images`, images of another
        shape or dtype.
    """
    shape = ", ".join(map(str, image_shape))
    batch = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        found = jax.eval_shape(network.apply, network.params, batch)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"features {network.name}: {str(error).splitlines()[0]}") from error
    if getattr(found, "shape", None) != (1, network.dimensions):
        raise UserError(
            f"features {network.name} returned {getattr(found, 'shape', type(found).__name__)} for "
            f"images of (1, {shape}); expected (1, {network.dimensions}), as its dimensions say"
        )

    def of_images(images: Images) -> tuple[npt.NDArray[np.float32], None]:
        images = arguments.array("images", images, expected="uint8 (N, H, W, C)")
        if images.dtype != np.uint8 or images.shape[1:] != image_shape:
            raise UserError(
                f"got images of dtype {images.dtype} and shape {images.shape} for "
                f"{network.name}; expected uint8 (N, {shape})"
            )
        features = np.empty((len(images), network.dimensions), np.float32)
        for start in range(0, len(images), EMBEDDING_BATCH):
            part = images[start : start + EMBEDDING_BATCH]
            padded = np.zeros((EMBEDDING_BATCH, *image_shape), np.uint8)
            padded[: len(part)] = part
            with jax.default_matmul_precision("float32"):
                made = _embed(network.apply, network.params, padded)
            features[start : start + len(part)] = np.asarray(made)[: len(part)]
        return features, None

    return Features(network.name, network.digest, network.dimensions, of_images)


@functools.partial(jax.jit, static_argnums=0)
def _embed(apply: Callable[[Any, jax.Array], jax.Array], params: Any, images: Any) -> jax.Array:
    return apply(params, to_unit_range(images))


def make_feature_function(classifier: TrainedClassifier) -> FeatureFunction:
    """The classifier as a function from pixels to features and predicted classes.

    Args:
      classifier: trained weights.

    Returns:
      A function from uint8 images (N, H, W, C), of the shape the classifier was trained on, to
      features float32 (N, 128) and predicted classes int32 (N,). It raises UserError for images of
      another shape or dtype.
    """
    num_classes = len(classifier.class_names)
    variables = classifier.variables
    height, width, channels = classifier.image_shape

    def features_and_classes(
        images: Images,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        images = arguments.array("images", images, expected="uint8 (N, H, W, C)")
        if images.dtype != np.uint8 or images.shape[1:] != classifier.image_shape:
            raise UserError(
                f"got images of dtype {images.dtype} and shape {images.shape} for the classifier "
                f"of {classifier.data}; expected uint8 (N, {height}, {width}, {channels})"
            )
        features, classes = [], []
        for start in range(0, len(images), FEATURE_BATCH):
            part = images[start : start + FEATURE_BATCH]
            padded = np.zeros((FEATURE_BATCH, *classifier.image_shape), np.uint8)
            padded[: len(part)] = part
            # The default precision of GPUs and TPUs, about 10 bits, would change the features.
            with jax.default_matmul_precision("float32"):
                part_features, part_classes = _apply(num_classes, variables, padded)
            features.append(np.asarray(part_features)[: len(part)])
            classes.append(np.asarray(part_classes)[: len(part)])
        if not features:
            raise UserError("got no images for the classifier; expected one or more")
        return np.concatenate(features), np.concatenate(classes)

    return features_and_classes


def accuracy(classifier: TrainedClassifier, source: LabelledImages) -> float:
    """Share of a source's images whose predicted class equals the label, in [0, 1].

    Raises:
      UserError: an unlabelled source, or images of another shape than the classifier's.
    """
    check_labelled(source)
    features_and_classes = make_feature_function(classifier)
    right = 0
    with Bar("classifier's accuracy", len(source)) as bar:
        for images, labels in read_in_order(source, FEATURE_BATCH):
            right += int(np.sum(features_and_classes(images)[1] == labels))
            bar(bar.done + len(images))
    return right / len(source)


# Weights are an argument, not constants: one compiled program serves all classifiers of a shape.
@functools.partial(jax.jit, static_argnums=0)
def _apply(num_classes: int, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    outputs: Any = Classifier(num_classes).apply(variables, to_unit_range(images), train=False)
    logits, features = outputs
    return features, jnp.argmax(logits, axis=-1).astype(jnp.int32)


def to_unit_range(images: jax.Array) -> jax.Array:
    """Pixels 0..255 of any integer type as float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0
