"""Trains a model for one seed and measures it; what is finished is read from its folder."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.comparison import measures
from benchmarks.comparison.models import Model, Training, training
from diffjax import flags
from diffjax.commands.setup import resolve
from diffjax.errors import UserError
from diffjax.evaluation.classifier_features import classifier_for
from diffjax.evaluation.feature_function import make_feature_function
from diffjax.evaluation.labelled_images import read_in_order
from diffjax.evaluation.report import evaluate
from diffjax.experiment.restore import restore_params
from diffjax.files import atomic_write, cache_folder

SHOWN = 100  # samples that are kept for pictures
FROM_REPORT = ("frechet_distance", "precision", "recall", "floor_equal_count",
               "floor_equal_count_range", "test_precision", "test_recall")  # fmt: skip


class Settings(NamedTuple):
    """What all models of a comparison have in common.

    Attributes:
      budget: FLOPs of a model's trainings.
      samples: number of samples that are measured.
      batch_size: samples drawn at once, and timed so.
      more: further flags of every training.
    """

    budget: float
    samples: int
    batch_size: int = 100
    more: tuple[str, ...] = ()


def finished(model: Model, folder: Path, settings: Settings, *, seed: int) -> dict[str, Any]:
    """The measurements of a model, which is trained and measured where that has not been done.

    Args:
      model: the model.
      folder: of its parts; its results are <folder>/<last part>.json, and .npz for pictures.
      settings: common to all models.
      seed: of the training and of the samples.

    Raises:
      UserError: results of other settings in the folder, or a command that failed.
    """
    path = folder / f"{model.parts[-1].name}.json"
    about = {**settings._asdict(), "more": list(settings.more), "seed": seed}
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["settings"] != about:
            raise UserError(f"{path} was measured with other settings: give another --workdir")
        return found
    trainings: list[Training] = []
    for part in model.parts:
        one = training(part, folder, budget=settings.budget, seed=seed, more=settings.more)
        train(one.arguments)
        trainings.append(one)
    measured, arrays = measure(trainings[-1], settings)
    found = {
        "settings": about,
        "flops": sum(one.flops_per_step * one.steps for one in trainings),
        "parameters": sum(one.parameters for one in trainings),
        "images": trainings[-1].images,
        "training_seconds": sum(seconds_of(one) for one in trainings),
        "bits_per_dim": bits_per_dim(model, trainings[-1]),
        **measured,
    }
    atomic_write(path.with_suffix(".npz"), partial(np.savez_compressed, **arrays))
    atomic_write(path, lambda file: file.write((json.dumps(found, indent=2) + "\n").encode()))
    return found


def train(arguments: Sequence[str]) -> None:
    """Trains, or goes on, or returns at once where the last checkpoint is that of the last step.

    Raises:
      UserError: the command failed; its last line is the message.
    """
    command = [sys.executable, "-m", "diffjax.main", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"training ended with exit code {done.returncode}: {last}")


def seconds_of(one: Training) -> float:
    """The seconds that a training takes at its median rate, without compilation and pictures."""
    rows = map(json.loads, (one.workdir / "metrics.jsonl").read_text().splitlines())
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return one.images / statistics.median(rates[1:] or rates)  # the first one compiles


def bits_per_dim(model: Model, one: Training) -> float | None:
    """Bits per dimension of held-out images, or None where they are not defined."""
    if model.likelihood == "none":
        return None
    train([*one.arguments, "--mode=evaluate", f"--config.evaluate.likelihood={model.likelihood}",
           f"--config.evaluate.images={model.images}"])  # fmt: skip
    report = json.loads((one.workdir / f"likelihood_{model.likelihood}.json").read_text())
    return float(report["bits_per_dim"])


def measure(one: Training, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """(numbers, arrays for the pictures) of a trained model's samples."""
    setup = resolve(flags.parse(one.arguments).config)
    _, params = restore_params(setup, one.workdir)
    count, size = settings.samples, settings.batch_size
    draw = partial(setup.generator, params, batch_size=size)
    draw(start=0, count=size)  # compiled
    started = time.perf_counter()
    images = np.concatenate(
        [draw(start=i, count=min(size, count - i)).images for i in range(0, count, size)]
    )
    seconds = time.perf_counter() - started
    labels = setup.generator.conditions.labels(0, count)
    report = evaluate(
        lambda start, number: images[start : start + number],
        train=setup.source,
        load_test=setup.load_held_out,
        cache_dir=cache_folder() / "evaluation",
        num_samples=count,
    )
    found, arrays = beside_real(
        images, labels, setup.source, setup.load_held_out(), class_names=setup.about.class_names
    )
    kept = {key: report[key] for key in FROM_REPORT}
    return {"seconds_per_image": seconds / count, **kept, **found}, arrays


def beside_real(
    images: np.ndarray, labels: np.ndarray | None, train: Any, test: Any, *, class_names: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Classes, nearest training images and copies of samples; the same of as many test images."""
    classifier = classifier_for(
        train, load_test=lambda: test, cache_dir=cache_folder() / "evaluation"
    )
    features_of = make_feature_function(classifier)
    real, real_features = _all(train, features_of)
    held_out, of_held_out = _all(test, features_of)
    # Not the first: sets may be sorted by class.
    some = np.random.default_rng(0).permutation(len(held_out))[: len(images)]
    features, predicted = features_of(images)
    in_features = measures.nearest(features, real_features)
    in_pixels = measures.nearest(images, real)
    test_pixels = measures.nearest(held_out[some], real)
    counts = np.bincount(predicted, minlength=len(class_names))
    numbers = {
        "least_class_share": measures.least_class_share(counts),
        "agreement": None if labels is None else measures.agreement(labels, predicted),
        "classifier_accuracy": classifier.accuracy,
        "distinct_neighbours": measures.distinct_share(in_features.indices),
        "test_distinct_neighbours": measures.distinct_share(
            measures.nearest(of_held_out[some], real_features).indices
        ),
        "copied_share": measures.copied_share(in_pixels.distance, test_pixels.distance),
    }
    return numbers, {"images": images[:SHOWN], "neighbours": real[in_pixels.indices[:SHOWN]]}


def _all(source: Any, features_of: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray]:
    """(images, features) of a set."""
    images, features = [], []
    for some, _ in read_in_order(source, 500):
        images.append(some)
        features.append(features_of(some)[0])
    return np.concatenate(images), np.concatenate(features)
