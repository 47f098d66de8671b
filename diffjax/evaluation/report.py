"""Fréchet distance, precision and recall between samples and a data set.

The distance is between generated images and all training images, in the features of a network. For
labelled sets that is a classifier trained on the set itself (`classifier_features`; the distance is
called CFD); for any set an `EmbeddingNetwork` trained on photographs, of which the FID's Inception
is one. Values are comparable only for the same data, the same weights and the same number of
samples: an estimate from n samples has an upward bias of about 1/n. So every report includes a
floor: the distance of real images that are not in the training set.

Most of the variance of a classifier's features is between classes, so random class counts increase
the distance. Fashion-MNIST's test set has exactly 1,000 images per class, and a floor of 0.024. Ten
thousand of its training images drawn at random have 0.023 to 0.050 (six draws), drawn 1,000 per
class 0.011 to 0.023 (four draws). Sample classes in the proportions of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError
from diffjax.evaluation.classifier_features import classifier_for
from diffjax.evaluation.feature_function import Features, embedding_features, make_feature_function
from diffjax.evaluation.frechet import FeatureStatistics, frechet_distance
from diffjax.evaluation.labelled_images import LabelledImages
from diffjax.evaluation.precision_recall import NEIGHBOURS, precision_recall
from diffjax.evaluation.real_images import DRAWS, REAL_BATCH, FloatArray, RealImages
from diffjax.models.classifier import FEATURES
from diffjax.perceptual import EmbeddingNetwork
from diffjax.progress import Bar

Generate = Callable[[int, int], npt.NDArray[np.uint8]]
Log = Callable[[str], object]

# What the distance is called, by the features' name.
SHORT_NAMES = {"classifier": "CFD", "inception": "FID"}


def evaluate(
    generate: Generate,
    *,
    train: LabelledImages,
    load_test: Callable[[], LabelledImages | None],
    cache_dir: str | Path,
    network: EmbeddingNetwork | None = None,
    name: str = "",
    num_samples: int = 10_000,
    batch_size: int = 500,
    log: Log = print,
) -> dict[str, Any]:
    """Compares samples with a data set by Fréchet distance, precision and recall.

    Args:
      generate: generate(start, count) returns samples start to start + count - 1 as uint8 (count,
        H, W, C), of the data's image shape. It is called in order, one batch ahead of the features,
        in its own thread (JAX's context managers are thread-local: enter them inside it).
      train: all training images; with labels if `network` is None.
      load_test: returns images that are not in the training set, or None; called when needed.
      cache_dir: folder for the classifier of a set other than Fashion-MNIST and for the features
        and statistics of real images; created if needed.
      network: whose features are compared; None for the set's own classifier.
      name: the set's name in the report; by default its own name.
      num_samples: number of samples, 2 or more.
      batch_size: the largest count passed to `generate`; 1 or more.
      log: called with lines of progress.

    Returns:
      A dictionary serialisable as JSON:
        "data", "num_samples", "num_train_images";
        "features", "features_weights": the network's name ("classifier" for the set's own) and
          the digest of its weights; "features_dimensions": the length of a feature vector;
        "frechet_distance": samples against all training images;
        "floor_train_test", "floor_train_test_images": all test images against all training
          images, and the number of test images; None and 0 without a test split;
        "floor_equal_count", "floor_equal_count_images": the same for min(num_samples, test
          images) test images, the mean over 10 draws without replacement (one value if it is all
          test images); None and 0 without a test split;
        "floor_equal_count_range": the smallest and the largest of those, [low, high], or None;
        "floor_halves", "floor_halves_images": without a test split, the distance between two
          disjoint random parts of the training images, each of half of min(num_samples, training
          images), and the number in each part; else None and 0;
        "precision", "recall": of the samples; see `precision_recall`. Both sets have
          "precision_recall_images" = min(num_samples, training images) images; None for 3 or fewer;
        "test_precision", "test_recall", "test_precision_recall_images": the same of test images,
          which is what a perfect model has at that count; None and 0 without a test split;
        "notes": sentences on what limits these numbers.
      With the classifier, also:
        "classifier_frechet_distance": the same as "frechet_distance";
        "class_counts": {class name: samples that the classifier assigns to it};
        "classifier_accuracy", "classifier_accuracy_split": 0 to 1, and the images it was
          measured on, "test" or (without a test split) "train";
        "classifier_weights": SHA-256 of the weights, in hex.

    Raises:
      UserError: an unlabelled data set without a `network`, samples of the wrong dtype, image shape
        or number, or arguments out of range.
    """
    if num_samples < 2 or batch_size < 1:
        raise UserError(
            f"got num_samples={num_samples} and batch_size={batch_size}; expected num_samples >= 2 "
            "(for a covariance) and batch_size >= 1"
        )
    if network is not None and len(train) < 2:
        raise UserError(
            f"got {len(train)} images in {train.name}; expected 2 or more for a covariance; add "
            "images"
        )

    name = name or train.name
    classifier = None
    if network is None:
        classifier = classifier_for(train, load_test=load_test, cache_dir=cache_dir, log=log)
        features = Features(
            "classifier", classifier.weights_digest, FEATURES, make_feature_function(classifier)
        )
    else:
        features = embedding_features(network, train.image_shape)
        log(f"features: {features.name} ({features.digest[:12]})")
    short = SHORT_NAMES.get(features.name, f"Fréchet distance ({features.name})")

    def real(source: LabelledImages, split: str) -> RealImages:
        return RealImages(source, split, features=features, cache_dir=cache_dir, log=log)

    # Samples first: errors of `generate` should appear before the real images are processed.
    sampled, classes = _sample_features(
        generate,
        features,
        image_shape=train.image_shape,
        num_samples=num_samples,
        batch_size=batch_size,
        log=log,
    )
    sample_statistics = FeatureStatistics.empty(features.dimensions)
    for start in range(0, num_samples, REAL_BATCH):  # a float64 copy of all may be gigabytes
        sample_statistics = sample_statistics.update(sampled[start : start + REAL_BATCH])
    train_images = real(train, "train")
    train_statistics = train_images.statistics()
    distance = frechet_distance(sample_statistics, train_statistics)
    log(f"{short}: {distance:.4f} ({num_samples} samples against {len(train)} training images)")

    test = load_test()
    test_images = None if test is None else real(test, "test")
    count = min(num_samples, len(train))
    drawn = train_images.drawn(count)
    report: dict[str, Any] = {
        "data": name,
        "num_samples": num_samples,
        "num_train_images": len(train),
        "features": features.name,
        "features_weights": features.digest,
        "features_dimensions": features.dimensions,
        "frechet_distance": distance,
    }
    if test_images is None:
        log(f"{short} floor: none, since {name} has no test split")
    floors = _floors(test_images, train_statistics, num_samples=num_samples, short=short, log=log)
    report |= floors | _halves(drawn if test is None else drawn[:0], short=short, log=log)
    report |= _precision_recall(sampled[:count], drawn, what="samples", log=log)
    tested = np.empty((0, features.dimensions), np.float32)
    if test_images is not None:
        tested = test_images.drawn(min(count, len(test_images)))
    of_test = _precision_recall(tested, drawn[: len(tested)], what="test images", log=log)
    report |= {f"test_{key}": value for key, value in of_test.items()}
    report["notes"] = _notes(num_samples, len(train), features, has_test=test is not None)
    for note in report["notes"]:
        log(f"note: {note}")
    if classifier is not None:
        assert classes is not None
        counts = np.bincount(classes, minlength=len(classifier.class_names))
        report |= {
            "classifier_frechet_distance": distance,
            "class_counts": dict(zip(classifier.class_names, counts.tolist(), strict=True)),
            "classifier_accuracy": classifier.accuracy,
            "classifier_accuracy_split": classifier.accuracy_split,
            "classifier_weights": classifier.weights_digest,
        }
    return report


def _floors(
    test: RealImages | None,
    train_statistics: FeatureStatistics,
    *,
    num_samples: int,
    short: str,
    log: Log,
) -> dict[str, Any]:
    """The distances of test images from all training images."""
    floor: float | None = None
    equal_floors: list[float] = []
    equal_count = 0
    if test is not None and len(test) < 2:
        log(f"{short} floor: none, since a covariance needs 2 test images or more")
    elif test is not None:
        floor = frechet_distance(test.statistics(), train_statistics)
        train_count = train_statistics.count
        log(f"{short} floor: {floor:.4f} ({len(test)} test images against {train_count} training)")
        equal_count = min(num_samples, len(test))
        if equal_count == len(test):
            equal_floors = [floor]
        else:
            equal_floors = [
                frechet_distance(some, train_statistics)
                for some in test.statistics_of_draws(equal_count)
            ]
            log(
                f"{short} floor: {np.mean(equal_floors):.4f} for {equal_count} test images, as "
                f"many as samples (mean of {DRAWS} draws, {min(equal_floors):.4f} to "
                f"{max(equal_floors):.4f})"
            )
        if equal_count < num_samples:
            log(
                f"{short} floor: from {equal_count} test images only; for {num_samples} it would "
                "be lower"
            )
    return {
        "floor_train_test": floor,
        "floor_train_test_images": 0 if test is None else len(test),
        "floor_equal_count": float(np.mean(equal_floors)) if equal_floors else None,
        "floor_equal_count_range": [min(equal_floors), max(equal_floors)] if equal_floors else None,
        "floor_equal_count_images": equal_count,
    }


def _halves(drawn: FloatArray, *, short: str, log: Log) -> dict[str, Any]:
    """The distance between two disjoint parts of the features of training images."""
    half = len(drawn) // 2
    if half < 2:
        return {"floor_halves": None, "floor_halves_images": 0}
    order = np.random.Generator(np.random.Philox(key=1)).permutation(len(drawn))
    parts = (order[:half], order[half : 2 * half])
    empty = FeatureStatistics.empty(drawn.shape[1])
    floor = frechet_distance(*(empty.update(drawn[part]) for part in parts))
    log(f"{short} floor: {floor:.4f} between two parts of {half} training images each")
    return {"floor_halves": floor, "floor_halves_images": half}


def _precision_recall(
    tested: FloatArray, real: FloatArray, *, what: str, log: Log
) -> dict[str, Any]:
    count = min(len(tested), len(real))
    found: dict[str, Any] = {
        "precision": None,
        "recall": None,
        "precision_recall_images": count if count > NEIGHBOURS else 0,
    }
    if count <= NEIGHBOURS:
        if count:
            log(f"precision and recall: none of {count} {what}; they need more than {NEIGHBOURS}")
        return found
    precision, recall = precision_recall(real[:count], tested[:count])
    log(f"precision {precision:.3f}, recall {recall:.3f} of {count} {what}, k = {NEIGHBOURS}")
    return found | {"precision": precision, "recall": recall}


def _notes(num_samples: int, num_train: int, features: Features, *, has_test: bool) -> list[str]:
    notes = []
    few = min(num_samples, num_train)
    if few <= features.dimensions:
        notes.append(
            f"{num_samples} samples and {num_train} training images for {features.dimensions} "
            "features: a covariance of so few is singular and the distance is biased upwards; "
            "compare it only with distances from the same numbers of images"
        )
    if not has_test:
        notes.append(
            "there is no test split: whether samples are copies of training images can't be seen "
            "from these numbers"
        )
    return notes


def _sample_features(
    generate: Generate,
    features: Features,
    *,
    image_shape: tuple[int, ...],
    num_samples: int,
    batch_size: int,
    log: Log,
) -> tuple[FloatArray, npt.NDArray[np.int32] | None]:
    """The samples' features, and the class that a classifier predicts of each."""
    found = np.empty((num_samples, features.dimensions), np.float32)
    classes = []
    with Bar("samples", num_samples, log=log) as bar:
        for start, made in _one_ahead(generate, num_samples, batch_size):
            count = min(batch_size, num_samples - start)
            samples = np.asarray(made)
            if samples.dtype != np.uint8 or samples.shape != (count, *image_shape):
                raise UserError(
                    f"got samples of dtype {samples.dtype} and shape {samples.shape}; expected "
                    f"uint8 {(count, *image_shape)}, the data's image shape; evaluate the model on "
                    "the data set it was trained on"
                )
            found[start : start + count], predicted = features.of_images(samples)
            if predicted is not None:
                classes.append(predicted)
            bar(start + count)
    log(f"samples: {num_samples} in {bar.seconds:.0f} s")
    return found, np.concatenate(classes) if classes else None


def _one_ahead(
    generate: Generate, num_samples: int, batch_size: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yields (start, samples) batch by batch, while a thread generates the next batch.

    The device samples while the host computes features; at most two batches are in memory.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="diffjax-sample") as thread:

        def ask(start: int) -> Future[npt.NDArray[np.uint8]]:
            return thread.submit(generate, start, min(batch_size, num_samples - start))

        ahead = ask(0)
        for start in range(0, num_samples, batch_size):
            drawn = ahead.result()
            if start + batch_size < num_samples:
                ahead = ask(start + batch_size)
            yield start, drawn
