"""What is measured of samples besides their Fréchet distance, precision and recall."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ROWS = 500  # of the matrix of distances that are in memory at once


class Nearest(NamedTuple):
    """The nearest neighbour of each query in a reference set.

    Attributes:
      indices: int (N,), into the references.
      distance: float64 (N,), Euclidean.
    """

    indices: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float64]


def nearest(queries: npt.NDArray, references: npt.NDArray) -> Nearest:
    """The nearest reference of each query, by Euclidean distance.

    Args:
      queries: numbers (N, ...), such as images or features.
      references: numbers (M, ...).
    """
    flat = references.reshape(len(references), -1).astype(np.float32)
    norms = np.square(flat).sum(axis=1)
    index = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), ROWS):
        rows = queries[start : start + ROWS].reshape(-1, flat.shape[1]).astype(np.float32)
        # |r|^2 - 2 q.r has the minimum of |q - r|^2.
        index[start : start + len(rows)] = np.argmin(norms - 2 * rows @ flat.T, axis=1)
    # The distance itself is taken from the difference, where nothing cancels.
    difference = queries.reshape(len(queries), -1).astype(np.float64) - flat[index]
    return Nearest(index, np.sqrt(np.square(difference).sum(axis=1)))


def distinct_share(index: npt.NDArray[np.int64]) -> float:
    """The share of queries that would be left if each reference were hit once at most.

    Samples that repeat few modes have few nearest training images: 1/N where all N are alike.

    >>> distinct_share(np.array([4, 4, 4, 7]))
    0.5
    """
    return len(np.unique(index)) / len(index)


def least_class_share(counts: npt.NDArray[np.int64]) -> float:
    """The rarest class's share of the samples over its share in a balanced set.

    >>> least_class_share(np.array([10, 20, 30]))
    0.5
    """
    return float(counts.min() * len(counts) / counts.sum())


def agreement(labels: npt.NDArray, predicted: npt.NDArray) -> float:
    """The share of samples that a classifier gives the class they were asked for.

    >>> agreement(np.array([0, 1, 1]), np.array([0, 1, 2])) == 2 / 3
    True
    """
    return float((np.asarray(labels) == np.asarray(predicted)).mean())


def copied_share(
    samples: npt.NDArray[np.float64], held_out: npt.NDArray[np.float64], *, quantile: float = 0.01
) -> float:
    """The share of samples nearer to a training image than all but `quantile` of held-out images.

    A model that has learned the density and memorised nothing has about `quantile`.

    Args:
      samples: distances (N,) of samples to their nearest training images.
      held_out: those of held-out images (M,).
      quantile: in (0, 1).

    >>> copied_share(np.array([0.0, 5.0]), np.arange(101.0))
    0.5
    """
    return float((samples < np.quantile(held_out, quantile)).mean())
