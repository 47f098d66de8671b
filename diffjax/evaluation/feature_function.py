"""From pixels to features and predicted classes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError
from diffjax.evaluation.labelled_images import (
    Images,
    LabelledImages,
    check_labelled,
    read_in_order,
)
from diffjax.models.classifier import Classifier
from diffjax.perceptual.classifier_weights import TrainedClassifier

# One compiled program serves any number of images.
FEATURE_BATCH = 500

FeatureFunction = Callable[[Images], tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]]


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
        images = np.asarray(images)
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
    for images, labels in read_in_order(source, FEATURE_BATCH):
        right += int(np.sum(features_and_classes(images)[1] == labels))
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
