"""The Fréchet distance between two sets of features, each summed up as a Gaussian.

For Gaussians N(mu_a, C_a) and N(mu_b, C_b) the squared Fréchet (2-Wasserstein) distance is

    d^2 = ||mu_a - mu_b||^2 + Tr(C_a + C_b - 2 (C_a C_b)^{1/2})                              (1)

(Dowson & Landau 1982, eq. 4). Heusel et al. 2017, "GANs trained by a two time-scale update
rule", section 4, use d^2 between features of real and generated images as a measure of samples;
which network the features come from is part of the measure's name.

C_a C_b is not symmetric, but with symmetric roots S_a S_a = C_a, S_b S_b = C_b its eigenvalues
are those of S_a C_b S_a = (S_a S_b)(S_a S_b)^T, so that

    Tr (C_a C_b)^{1/2} = sum of the singular values of S_a S_b.                              (2)

With C = U L U^T, S_a S_b has the singular values of L_a^{1/2} U_a^T U_b L_b^{1/2}. That needs two
symmetric eigendecompositions, no complex numbers and no inverse, so singular covariances are
fine; and singular values are exact to rounding, where the square roots of the eigenvalues of
S_a C_b S_a would turn an error of 1e-16 into one of 1e-8.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from diffjax import arguments
from diffjax.errors import UserError

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Count, mean and scatter of the features seen so far, in float64.

    Immutable: `update` and `merge` return the new statistics. Both use the pairwise rule of
    Chan, Golub & LeVeque 1979: for parts a and b with d = mean_b - mean_a,

        n = n_a + n_b,  mean = mean_a + d n_b / n,  M = M_a + M_b + d d^T n_a n_b / n,

    which, unlike sums of x and x x^T, is accurate when the mean is large compared to the spread.

    Attributes:
      count: number of feature vectors.
      mean: float64 (D,); zeros while count is 0.
      scatter: float64 (D, D), the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: FloatArray
    scatter: FloatArray

    @classmethod
    def empty(cls, dimensions: int) -> FeatureStatistics:
        """The statistics of zero feature vectors of length `dimensions`."""
        dimensions = arguments.whole("dimensions", dimensions, least=1)
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    @property
    def dimensions(self) -> int:
        """Length of a feature vector."""
        return len(self.mean)

    @property
    def covariance(self) -> FloatArray:
        """The unbiased covariance M / (n - 1), float64 (D, D).

        Raises:
          UserError: fewer than 2 features.
        """
        if self.count < 2:
            raise UserError(
                f"got {self.count} feature vectors for a covariance; expected 2 or more; "
                "use more samples"
            )
        return self.scatter / (self.count - 1)

    def update(self, features: npt.ArrayLike) -> FeatureStatistics:
        """These statistics with a batch of features added.

        Args:
          features: floats (B, D); B may be 0.

        Raises:
          UserError: another shape, or values that are not finite.

        >>> stats = FeatureStatistics.empty(1).update([[1.0], [2.0]]).update([[6.0]])
        >>> stats.count, stats.mean.tolist(), stats.covariance.tolist()
        (3, [3.0], [[7.0]])
        """
        batch = arguments.array("features", features, expected="floats (B, D)").astype(np.float64)
        if batch.ndim != 2 or batch.shape[1] != self.dimensions:
            raise UserError(
                f"got features of shape {batch.shape}; expected (B, {self.dimensions}); "
                "take all features from one network"
            )
        bad = int(np.sum(~np.isfinite(batch).all(axis=1)))
        if bad:
            raise UserError(
                f"got {bad} of {len(batch)} feature vectors with NaN or infinity; expected finite "
                "numbers; look at the samples and the network's weights"
            )
        if len(batch) == 0:
            return self
        mean = batch.mean(axis=0)
        centred = batch - mean
        return self.merge(FeatureStatistics(len(batch), mean, centred.T @ centred))

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both sets of features together.

        Raises:
          UserError: features of different dimensions.
        """
        _check_statistics("other", other)
        _check_same_dimensions(self, other)
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return FeatureStatistics(count, mean, self.scatter + other.scatter + between)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The squared Fréchet distance between the Gaussians fitted to two sets of features.

    d^2 = ||mu_a - mu_b||^2 + Tr(C_a + C_b - 2 (C_a C_b)^{1/2}), the module's equations (1) and
    (2). Estimates from few features are biased upwards, so only distances from equal counts
    compare.

    Args:
      a: statistics of 2 or more features.
      b: statistics of 2 or more features of the same dimensions.

    Returns:
      d^2 >= 0 (a negative result of rounding is returned as 0), in the features' units squared.

    Raises:
      UserError: too few features, different dimensions, or statistics that are not finite.
    """
    _check_statistics("a", a)
    _check_statistics("b", b)
    _check_same_dimensions(a, b)
    for which, stats in (("first", a), ("second", b)):
        if not (np.isfinite(stats.mean).all() and np.isfinite(stats.scatter).all()):
            raise UserError(
                f"got NaN or infinity in the {which} set's statistics; expected finite numbers; "
                "compute them again"
            )
    covariance_a, covariance_b = a.covariance, b.covariance
    root_values_a, vectors_a = _root_eigensystem(covariance_a)
    root_values_b, vectors_b = _root_eigensystem(covariance_b)
    product = root_values_a[:, None] * (vectors_a.T @ vectors_b) * root_values_b
    trace_of_root = np.linalg.svd(product, compute_uv=False).sum()
    shift = a.mean - b.mean
    distance = shift @ shift + np.trace(covariance_a + covariance_b) - 2.0 * trace_of_root
    return max(float(distance), 0.0)


def _root_eigensystem(covariance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Square roots of the eigenvalues of a positive semi-definite matrix, and its eigenvectors."""
    values, vectors = np.linalg.eigh(covariance)
    # In the null space of a singular covariance rounding leaves +-1e-16, whose root is 1e-8.
    rounding = len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    return np.sqrt(np.where(values > rounding, values, 0.0)), vectors


def _check_statistics(name: str, value: object) -> None:
    if not isinstance(value, FeatureStatistics):
        raise UserError(
            f"{name} is {arguments.shown(value)}: expected FeatureStatistics; make them with "
            "FeatureStatistics.empty(D).update(features)"
        )


def _check_same_dimensions(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.dimensions != b.dimensions:
        raise UserError(
            f"got features of {a.dimensions} and of {b.dimensions} dimensions; expected one "
            "number; take both sets' features from one network"
        )
