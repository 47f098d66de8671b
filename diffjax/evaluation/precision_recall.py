"""Precision and recall of samples, by manifolds of nearest neighbours.

Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models",
section 2. The manifold of a set of features is the union of balls around each, whose radius is the
distance to its k-th nearest neighbour in the set (equation 1). Then

    precision = share of the generated features in the manifold of the real ones,
    recall = share of the real features in the manifold of the generated ones              (2)

(equation 2). Precision falls when samples look wrong, recall when kinds of real images are missing.
The manifolds grow as sets shrink, so values compare only for equal counts of both sets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.progress import Bar

# The paper's k.
NEIGHBOURS = 3
ROWS = 1024  # of the matrix of distances that are in memory at once
# Of squared norms: rounding of a squared distance computed from inner products.
ROUNDING = 1e-12

FloatArray = npt.NDArray[np.float64]


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1].

    Attributes:
      precision: of the generated features, in the manifold of the real ones.
      recall: of the real features, in the manifold of the generated ones.
    """

    precision: float
    recall: float


def precision_recall(
    real: npt.ArrayLike, generated: npt.ArrayLike, *, neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Improved precision and recall of generated features, equation (2).

    Args:
      real: floats (N, D), features of real images.
      generated: floats (M, D), features of samples in the same network; best M = N.
      neighbours: k: a ball's radius is the distance to the k-th nearest other feature of its set.

    Raises:
      UserError: other shapes, values that are not finite, or at most k features in a set.

    >>> line = [[0.0], [1.0], [2.0], [3.0]]
    >>> precision_recall(line, [[0.4], [0.5], [9.0], [9.5]], neighbours=1)
    PrecisionRecall(precision=0.5, recall=0.0)
    """
    neighbours = arguments.whole("neighbours", neighbours, least=1)
    a = arguments.array("real", real, expected="floats (N, D)").astype(np.float64)
    b = arguments.array("generated", generated, expected="floats (M, D)").astype(np.float64)
    for name, features in (("real", a), ("generated", b)):
        if features.ndim != 2 or features.shape[1:] != a.shape[1:]:
            raise UserError(
                f"got {name} features of shape {features.shape} with real ones of {a.shape}; "
                "expected (N, D) and (M, D); take all features from one network"
            )
        if len(features) <= neighbours:
            raise UserError(
                f"got {len(features)} {name} features; expected more than {neighbours}, the number "
                "of neighbours; use more images"
            )
        if not np.isfinite(features).all():
            raise UserError(
                f"got NaN or infinity in the {name} features; expected finite numbers; look at the "
                "samples and the network's weights"
            )
    centre = a.mean(axis=0)  # small norms, for small errors of rounding
    a, b = a - centre, b - centre
    return PrecisionRecall(_share_inside(b, a, neighbours), _share_inside(a, b, neighbours))


def _share_inside(points: FloatArray, centres: FloatArray, neighbours: int) -> float:
    """The share of points in the manifold of the centres."""
    parts: list[FloatArray] = []
    with Bar("distances between features", len(centres), unit="feature") as bar:
        for rows in _blocks(centres):
            # The nearest of its own set is the feature itself.
            nearest = np.partition(_squared_distances(rows, centres), neighbours, axis=1)
            parts.append(nearest[:, neighbours])
            bar(bar.done + len(rows))
    radii = np.concatenate(parts)
    norms = np.square(centres).sum(axis=1)
    inside = 0
    with Bar("features within others' distances", len(points), unit="feature") as bar:
        for rows in _blocks(points):
            tolerance = ROUNDING * (np.square(rows).sum(axis=1)[:, None] + norms)
            near = _squared_distances(rows, centres) <= radii + tolerance
            inside += int(near.any(axis=1).sum())
            bar(bar.done + len(rows))
    return inside / len(points)


def _blocks(features: FloatArray) -> list[FloatArray]:
    return [features[start : start + ROWS] for start in range(0, len(features), ROWS)]


def _squared_distances(a: FloatArray, b: FloatArray) -> FloatArray:
    """Squared Euclidean distances (N, M), by ||a||^2 + ||b||^2 - 2 a.b."""
    inner: FloatArray = a @ b.T
    squared = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * inner
    return np.maximum(squared, 0.0)
