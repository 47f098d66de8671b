"""Files of trained classifiers: weights and provenance.

Weights are stored as float16 to halve the size, and rounded to float16 before first use, so that
saving and loading does not change the features. The file is an .npz with one array per leaf of
the Flax variables, named by its path ("params/features/kernel"), and one JSON text, "metadata".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import traverse_util

from diffjax.errors import UserError
from diffjax.files import atomic_write
from diffjax.models.classifier import Classifier

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "fashion_mnist_classifier.npz"

METADATA = "metadata"


@dataclasses.dataclass(frozen=True)
class TrainedClassifier:
    """Weights of `Classifier` and how they were made.

    Attributes:
      weights: float16 arrays by flattened path, "params/..." and "batch_stats/...".
      data: name of the set it was trained on.
      data_fingerprint: `fingerprint` of that set's training images and labels.
      class_names: the classes in the order of the logits.
      image_shape: (H, W, C) of the images it was trained on.
      accuracy: on `accuracy_split`, 0 to 1.
      accuracy_split: "test", or "train" if the set has no test split.
      seed: of the training.
      steps: optimiser steps of the training.
      recipe_version: `RECIPE_VERSION` of the training.
    """

    weights: Mapping[str, npt.NDArray[np.float16]]
    data: str
    data_fingerprint: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    accuracy: float
    accuracy_split: str
    seed: int
    steps: int
    recipe_version: int

    @property
    def variables(self) -> dict[str, Any]:
        """The weights as Flax variables, float32 (of float16 values)."""
        # Converted in NumPy, since JAX would compile a conversion for every shape.
        flat = {name: jnp.asarray(array.astype(np.float32)) for name, array in self.weights.items()}
        return traverse_util.unflatten_dict(flat, sep="/")

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights, in hex; equal digests give equal features."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            array = np.ascontiguousarray(self.weights[name])
            digest.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
            digest.update(array.astype("<f2").tobytes())
        return digest.hexdigest()


def round_weights(variables: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float16]]:
    """Flax variables as float16 arrays by flattened path.

    Raises:
      UserError: a weight that is NaN, or beyond float16's range.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    with np.errstate(over="ignore"):
        weights = {name: np.asarray(leaf).astype(np.float16) for name, leaf in flat.items()}
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"got NaN or values beyond float16 in the classifier's {name} after training; "
                "expected finite weights; check the images, or lower the peak learning rate"
            )
    return weights


def save_classifier(path: str | os.PathLike[str], classifier: TrainedClassifier) -> None:
    """Writes the classifier as an .npz file, atomically.

    Args:
      path: the file to create or replace; missing parent folders are made.
      classifier: the classifier.

    Raises:
      UserError: a path that cannot be written.
    """
    metadata = {
        field.name: getattr(classifier, field.name)
        for field in dataclasses.fields(classifier)
        if field.name != "weights"
    }
    arrays: dict[str, Any] = {METADATA: np.array(json.dumps(metadata)), **classifier.weights}
    atomic_write(path, lambda file: np.savez_compressed(file, **arrays))


def load_classifier(path: str | os.PathLike[str]) -> TrainedClassifier:
    """Reads a file written by `save_classifier`; never loads pickles.

    Raises:
      UserError: no such file, another format, or weights that do not fit this version's
        `Classifier`.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        metadata = json.loads(str(arrays.pop(METADATA)))
        classifier = TrainedClassifier(
            weights=arrays,
            data=str(metadata["data"]),
            data_fingerprint=str(metadata["data_fingerprint"]),
            class_names=tuple(metadata["class_names"]),
            image_shape=tuple(metadata["image_shape"]),
            accuracy=float(metadata["accuracy"]),
            accuracy_split=str(metadata["accuracy_split"]),
            seed=int(metadata["seed"]),
            steps=int(metadata["steps"]),
            recipe_version=int(metadata["recipe_version"]),
        )
    except FileNotFoundError as error:
        raise UserError(
            f"found no classifier weights at {path}; expected an .npz file; make one with "
            "python -m diffjax.evaluation.classifier_features"
        ) from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read classifier weights from {path} ({type(error).__name__}); expected an "
            ".npz file written by diffjax.evaluation.classifier_features; delete it and run "
            "python -m diffjax.evaluation.classifier_features again"
        ) from error
    _check_layout(path, classifier)
    return classifier


def _check_layout(path: Path, classifier: TrainedClassifier) -> None:
    model = Classifier(num_classes=len(classifier.class_names))
    images = jax.ShapeDtypeStruct((1, *classifier.image_shape), jnp.float32)
    variables = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), images
    )
    expected = {
        name: leaf.shape for name, leaf in traverse_util.flatten_dict(variables, sep="/").items()
    }
    found = {name: array.shape for name, array in classifier.weights.items()}
    half = all(array.dtype == np.float16 for array in classifier.weights.values())
    if found != expected or not half:
        odd = sorted(set(found.items()) ^ set(expected.items()))
        detail = f"{odd[0][0]} {odd[0][1]}" if odd else "weights that are not float16"
        raise UserError(
            f"the classifier weights in {path} do not fit this version's classifier (first "
            f"difference: {detail}); expected weights of the current version; delete the file and "
            "run python -m diffjax.evaluation.classifier_features again"
        )
