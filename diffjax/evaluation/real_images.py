"""Features of real images and their statistics, cached by data set and weights."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffjax import arguments
from diffjax.evaluation.feature_function import Features
from diffjax.evaluation.frechet import FeatureStatistics
from diffjax.evaluation.labelled_images import (
    LabelledImages,
    fingerprint,
    read_examples,
    read_in_order,
)
from diffjax.files import atomic_write
from diffjax.progress import Bar

Log = Callable[[str], object]
FloatArray = npt.NDArray[np.float32]

REAL_BATCH = 500
DRAWS = 10
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


class RealImages:
    """One split's features in one network; what is computed is cached as files."""

    def __init__(
        self,
        source: LabelledImages,
        split: str,
        *,
        features: Features,
        cache_dir: str | Path,
        log: Log,
    ) -> None:
        """Nothing is computed but the set's fingerprint.

        Args:
          source: the images.
          split: its name in lines of the log.
          features: what is computed of an image.
          cache_dir: folder of the files; created if needed.
          log: called with lines of progress.
        """
        self._source, self._split = source, split
        self._features, self._log = features, log
        self._key = f"{fingerprint(source)[:16]}-{features.digest[:16]}"
        self._cache = Path(cache_dir)

    def __len__(self) -> int:
        return len(self._source)

    def statistics(self) -> FeatureStatistics:
        """Statistics of all images."""
        path = self._cache / f"statistics-{self._key}.npz"
        width = self._features.dimensions
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    statistics = FeatureStatistics(
                        int(stored["count"]), stored["mean"], stored["scatter"]
                    )
                shapes = (statistics.mean.shape, statistics.scatter.shape)
                if shapes != ((width,), (width, width)) or statistics.count != len(self):
                    raise ValueError("of another set")
            except _UNREADABLE as error:
                self._log_unreadable(path, error)
            else:
                self._log(f"real images: {self._split} statistics from {path}")
                return statistics
        statistics = FeatureStatistics.empty(width)
        with self._bar(f"real images, {self._split}", len(self)) as bar:
            for images, _ in read_in_order(self._source, REAL_BATCH):
                statistics = statistics.update(self._features.of_images(images)[0])
                bar(statistics.count)
        self._log(f"real images: {len(self)} of {self._split} in {bar.seconds:.0f} s")
        arrays: dict[str, Any] = {
            "count": np.array(statistics.count),
            "mean": statistics.mean,
            "scatter": statistics.scatter,
        }
        atomic_write(path, lambda file: np.savez(file, **arrays))
        return statistics

    def drawn(self, count: int) -> FloatArray:
        """Features (count, D) of images drawn without replacement by a fixed seed."""
        path = self._cache / f"features-{self._key}-{count}.npz"
        shape = (count, self._features.dimensions)
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    found: FloatArray = stored["features"]
                if found.shape != shape or found.dtype != np.float32:
                    raise ValueError("of another set")
            except _UNREADABLE as error:
                self._log_unreadable(path, error)
            else:
                return found
        rows = drawn_rows(len(self), count, draw=0)
        features = np.empty(shape, np.float32)
        with self._bar(f"real images, {count} of {self._split}", count) as bar:
            for start in range(0, count, REAL_BATCH):
                images, _ = read_examples(self._source, rows[start : start + REAL_BATCH])
                features[start : start + len(images)] = self._features.of_images(images)[0]
                bar(start + len(images))
        atomic_write(path, lambda file: np.savez(file, features=features))
        return features

    def statistics_of_draws(self, count: int) -> list[FeatureStatistics]:
        """Statistics of `count` images drawn without replacement, `DRAWS` times."""
        # Not the first `count`: many sets are sorted by class. Not a single draw: its random class
        # counts change the distance by a factor of up to two.
        chosen = np.zeros((DRAWS, len(self)), bool)
        for draw in range(DRAWS):
            chosen[draw, drawn_rows(len(self), count, draw=draw)] = True
        statistics = [FeatureStatistics.empty(self._features.dimensions)] * DRAWS
        start = 0
        with self._bar(f"real images, draws of {self._split}", len(self)) as bar:
            for images, _ in read_in_order(self._source, REAL_BATCH):
                features, _ = self._features.of_images(images)
                in_batch = chosen[:, start : start + len(images)]
                statistics = [
                    some.update(features[mask])
                    for some, mask in zip(statistics, in_batch, strict=True)
                ]
                start += len(images)
                bar(start)
        return statistics

    def _bar(self, what: str, total: int) -> Bar:
        return Bar(what, total, log=self._log)

    def _log_unreadable(self, path: Path, error: Exception) -> None:
        self._log(f"real images: cannot use {path} ({type(error).__name__}); computing it again")


def drawn_rows(total: int, count: int, *, draw: int) -> npt.NDArray[np.int64]:
    """`count` of 0..total-1, drawn without replacement by a fixed seed, in order."""
    total = arguments.whole("total", total)
    count = arguments.whole("count", count, most=total)
    generator = np.random.Generator(np.random.Philox(key=draw))
    return np.sort(generator.permutation(total)[:count])
