"""The classifier Fréchet distance (CFD) between samples and a data set.

The CFD is the Fréchet distance between generated images and all training images, in the features of
a classifier trained on that data set (`classifier_features`). Values are comparable only for the
same data, the same weights and the same number of samples: an estimate from n samples has an upward
bias of about 1/n. So every report includes a floor: the distance of real images that the classifier
was not trained on.

Most of the variance of these features is between classes, so random class counts increase the
distance. Fashion-MNIST's test set has exactly 1,000 images per class, and a floor of 0.024. Ten
thousand of its training images drawn at random have 0.023 to 0.050 (six draws), drawn 1,000 per
class 0.011 to 0.023 (four draws). Sample classes in the proportions of the data.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError
from diffjax.evaluation.classifier_features import classifier_for
from diffjax.evaluation.feature_function import FeatureFunction, make_feature_function
from diffjax.evaluation.frechet import FeatureStatistics, frechet_distance
from diffjax.evaluation.labelled_images import (
    LabelledImages,
    fingerprint,
    read_in_order,
)
from diffjax.files import atomic_write
from diffjax.models.classifier import FEATURES

Generate = Callable[[int, int], npt.NDArray[np.uint8]]
Log = Callable[[str], object]

REAL_BATCH = 500
DRAWS = 10


def evaluate(
    generate: Generate,
    *,
    train: LabelledImages,
    load_test: Callable[[], LabelledImages | None],
    cache_dir: str | Path,
    name: str = "",
    num_samples: int = 10_000,
    batch_size: int = 500,
    log: Log = print,
) -> dict[str, Any]:
    """Compares samples with a data set by the classifier Fréchet distance.

    Args:
      generate: generate(start, count) returns samples start to start + count - 1 as uint8 (count,
        H, W, C), of the data's image shape. It is called in order, one batch ahead of the features,
        in its own thread (JAX's context managers are thread-local: enter them inside it).
      train: all training images, with labels.
      load_test: returns images that the classifier was not trained on, or None; called when needed.
      cache_dir: folder for the classifier of a set other than Fashion-MNIST and for the
        statistics of real images; created if needed.
      name: the set's name in the report; by default its own name.
      num_samples: number of samples, 2 or more.
      batch_size: the largest count passed to `generate`; 1 or more.
      log: called with lines of progress.

    Returns:
      A dictionary serialisable as JSON:
        "data", "num_samples", "num_train_images";
        "classifier_frechet_distance": samples against all training images;
        "floor_train_test", "floor_train_test_images": all test images against all training
          images, and the number of test images; None and 0 without a test split;
        "floor_equal_count", "floor_equal_count_images": the same for min(num_samples, test
          images) test images, the mean over 10 draws without replacement (one value if it is all
          test images); None and 0 without a test split;
        "floor_equal_count_range": the smallest and the largest of those, [low, high], or None;
        "class_counts": {class name: samples that the classifier assigns to it};
        "classifier_accuracy", "classifier_accuracy_split": 0 to 1, and the images it was
          measured on, "test" or (without a test split) "train";
        "classifier_weights": SHA-256 of the weights, in hex.

    Raises:
      UserError: an unlabelled data set, samples of the wrong dtype, image shape or number, or
        arguments out of range.
    """
    if num_samples < 2 or batch_size < 1:
        raise UserError(
            f"got num_samples={num_samples} and batch_size={batch_size}; expected num_samples >= 2 "
            "(for a covariance) and batch_size >= 1"
        )

    name = name or train.name
    classifier = classifier_for(train, load_test=load_test, cache_dir=cache_dir, log=log)
    features_and_classes = make_feature_function(classifier)

    def real_statistics(source: LabelledImages, split: str) -> FeatureStatistics:
        key = f"{fingerprint(source)[:16]}-{classifier.weights_digest[:16]}"
        path = Path(cache_dir) / f"statistics-{key}.npz"
        return _cached_statistics(path, source, split, features_and_classes, log=log)

    # Samples first: errors of `generate` should appear before the real images are processed.
    sample_statistics, class_counts = _sample_statistics(
        generate,
        features_and_classes,
        image_shape=train.image_shape,
        num_classes=len(classifier.class_names),
        num_samples=num_samples,
        batch_size=batch_size,
        log=log,
    )
    train_statistics = real_statistics(train, "train")
    distance = frechet_distance(sample_statistics, train_statistics)
    log(f"CFD: {distance:.4f} ({num_samples} samples against {len(train)} training images)")

    test = load_test()
    floor: float | None = None
    equal_floors: list[float] = []
    equal_count = 0
    if test is None:
        log(f"CFD floor: none, since {name} has no test split")
    else:
        floor = frechet_distance(real_statistics(test, "test"), train_statistics)
        log(
            f"CFD floor: {floor:.4f} ({len(test)} test images against {len(train)} training images)"
        )
        equal_count = min(num_samples, len(test))
        if equal_count == len(test):
            equal_floors = [floor]
        else:
            drawn = _statistics_of_draws(test, equal_count, features_and_classes)
            equal_floors = [frechet_distance(some, train_statistics) for some in drawn]
            log(
                f"CFD floor: {np.mean(equal_floors):.4f} for {equal_count} test images, as many as "
                f"samples (mean of {DRAWS} draws, {min(equal_floors):.4f} to "
                f"{max(equal_floors):.4f})"
            )
        if equal_count < num_samples:
            log(
                f"CFD floor: from {equal_count} test images only; for {num_samples} it would be "
                "lower"
            )

    return {
        "data": name,
        "num_samples": num_samples,
        "num_train_images": len(train),
        "classifier_frechet_distance": distance,
        "floor_train_test": floor,
        "floor_train_test_images": 0 if test is None else len(test),
        "floor_equal_count": float(np.mean(equal_floors)) if equal_floors else None,
        "floor_equal_count_range": [min(equal_floors), max(equal_floors)] if equal_floors else None,
        "floor_equal_count_images": equal_count,
        "class_counts": dict(zip(classifier.class_names, class_counts.tolist(), strict=True)),
        "classifier_accuracy": classifier.accuracy,
        "classifier_accuracy_split": classifier.accuracy_split,
        "classifier_weights": classifier.weights_digest,
    }


def _sample_statistics(
    generate: Generate,
    features_and_classes: FeatureFunction,
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    num_samples: int,
    batch_size: int,
    log: Log,
) -> tuple[FeatureStatistics, npt.NDArray[np.int64]]:
    """Statistics of the samples' features, and the number of samples in each predicted class."""
    statistics = FeatureStatistics.empty(FEATURES)
    class_counts = np.zeros(num_classes, np.int64)
    started = time.monotonic()
    tenths_logged = 0
    for start, drawn in _one_ahead(generate, num_samples, batch_size):
        count = min(batch_size, num_samples - start)
        samples = np.asarray(drawn)
        if samples.dtype != np.uint8 or samples.shape != (count, *image_shape):
            raise UserError(
                f"got samples of dtype {samples.dtype} and shape {samples.shape}; expected uint8 "
                f"{(count, *image_shape)}, the data's image shape; evaluate the model on the data "
                "set it was trained on"
            )
        features, classes = features_and_classes(samples)
        statistics = statistics.update(features)
        class_counts += np.bincount(classes, minlength=num_classes)
        made = start + count
        if 10 * made // num_samples > tenths_logged:
            tenths_logged = 10 * made // num_samples
            log(f"samples: {made}/{num_samples}, {time.monotonic() - started:.0f} s")
    return statistics, class_counts


def _one_ahead(
    generate: Generate, num_samples: int, batch_size: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yields (start, samples) batch by batch, while a thread generates the next batch.

    The device samples while the host computes statistics; at most two batches are in memory.
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


def _statistics_of_draws(
    source: LabelledImages, count: int, features_and_classes: FeatureFunction
) -> list[FeatureStatistics]:
    """Statistics of `count` images drawn without replacement, `DRAWS` times, by fixed seeds."""
    # Not the first `count`: many sets are sorted by class. Not a single draw: its random class
    # counts change the distance by a factor of up to two.
    chosen = np.zeros((DRAWS, len(source)), bool)
    for draw in range(DRAWS):
        generator = np.random.Generator(np.random.Philox(key=draw))
        chosen[draw, generator.permutation(len(source))[:count]] = True
    statistics = [FeatureStatistics.empty(FEATURES)] * DRAWS
    start = 0
    for images, _ in read_in_order(source, REAL_BATCH):
        features, _ = features_and_classes(images)
        in_batch = chosen[:, start : start + len(images)]
        statistics = [
            some.update(features[mask]) for some, mask in zip(statistics, in_batch, strict=True)
        ]
        start += len(images)
    return statistics


def _cached_statistics(
    path: Path,
    source: LabelledImages,
    split: str,
    features_and_classes: FeatureFunction,
    *,
    log: Log,
) -> FeatureStatistics:
    """Statistics of all of a source's images, cached at `path`."""
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                statistics = FeatureStatistics(
                    int(stored["count"]), stored["mean"], stored["scatter"]
                )
            shapes = (statistics.mean.shape, statistics.scatter.shape)
            if shapes != ((FEATURES,), (FEATURES, FEATURES)) or statistics.count != len(source):
                raise ValueError("of another set")
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log(f"real images: cannot use {path} ({type(error).__name__}); computing it again")
        else:
            log(f"real images: {split} statistics from {path}")
            return statistics
    started = time.monotonic()
    statistics = FeatureStatistics.empty(FEATURES)
    for images, _ in read_in_order(source, REAL_BATCH):
        statistics = statistics.update(features_and_classes(images)[0])
    log(f"real images: {len(source)} of {split} in {time.monotonic() - started:.0f} s")
    arrays: dict[str, Any] = {
        "count": np.array(statistics.count),
        "mean": statistics.mean,
        "scatter": statistics.scatter,
    }
    atomic_write(path, lambda file: np.savez(file, **arrays))
    return statistics
