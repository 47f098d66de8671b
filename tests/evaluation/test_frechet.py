"""The Fréchet distance against SciPy, closed forms and symmetries it must have."""

import numpy as np
import pytest
import scipy.linalg

from diffjax.errors import UserError
from diffjax.evaluation.frechet import FeatureStatistics, frechet_distance

RNG = np.random.default_rng(20)


def gaussian(mean, covariance, count=101):
    mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
    return FeatureStatistics(count, mean, covariance * (count - 1))


def random_spd(dimensions, spread=1.0):
    factor = RNG.normal(size=(dimensions, dimensions)) * np.exp(
        spread * RNG.normal(size=dimensions)
    )
    return factor @ factor.T / dimensions


def statistics_of(features):
    return FeatureStatistics.empty(features.shape[1]).update(features)


@pytest.mark.parametrize("dimensions", [1, 2, 17, 128])
def test_agrees_with_scipys_matrix_square_root(dimensions):
    for _ in range(3):
        mean_a, mean_b = RNG.normal(size=(2, dimensions))
        cov_a, cov_b = random_spd(dimensions), random_spd(dimensions)
        root = scipy.linalg.sqrtm(cov_a @ cov_b)
        expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root.real)
        found = frechet_distance(gaussian(mean_a, cov_a), gaussian(mean_b, cov_b))
        assert found == pytest.approx(expected, rel=1e-8)


def test_commuting_covariances_have_a_closed_form():
    # In a common eigenbasis the distance is that of the standard deviations, axis by axis.
    deviations_a, deviations_b = RNG.uniform(0, 3, size=(2, 40))
    deviations_a[:5] = 0
    shift = RNG.normal(size=40)
    expected = np.sum(shift**2) + np.sum((deviations_a - deviations_b) ** 2)
    found = frechet_distance(
        gaussian(np.zeros(40), np.diag(deviations_a**2)), gaussian(shift, np.diag(deviations_b**2))
    )
    assert found == pytest.approx(expected, rel=1e-12)


def test_one_dimension_by_hand():
    # N(1, 2^2) to N(4, 6^2): 3^2 + (6 - 2)^2.
    assert frechet_distance(gaussian([1], [[4]]), gaussian([4], [[36]])) == pytest.approx(25)


def test_rotations_shifts_and_order_change_nothing_and_scaling_scales():
    mean_a, mean_b = RNG.normal(size=(2, 12))
    cov_a, cov_b = random_spd(12), random_spd(12)
    plain = frechet_distance(gaussian(mean_a, cov_a), gaussian(mean_b, cov_b))
    q, _ = np.linalg.qr(RNG.normal(size=(12, 12)))
    moved = frechet_distance(
        gaussian(q @ mean_a + 5, q @ cov_a @ q.T), gaussian(q @ mean_b + 5, q @ cov_b @ q.T)
    )
    swapped = frechet_distance(gaussian(mean_b, cov_b), gaussian(mean_a, cov_a))
    tripled = frechet_distance(gaussian(3 * mean_a, 9 * cov_a), gaussian(3 * mean_b, 9 * cov_b))
    assert moved == pytest.approx(plain, rel=1e-10)
    assert swapped == pytest.approx(plain, rel=1e-10)
    assert tripled == pytest.approx(9 * plain, rel=1e-10)


def test_singular_covariances_are_exact():
    # Two lines at an angle: rank-one covariances u u^T and v v^T, whose root's trace is |u.v|.
    u, v = RNG.normal(size=(2, 30))
    found = frechet_distance(
        gaussian(np.zeros(30), np.outer(u, u)), gaussian(np.zeros(30), np.outer(v, v))
    )
    assert found == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-10)


def test_a_set_is_at_no_distance_from_itself_even_when_rank_deficient():
    few = statistics_of(RNG.normal(size=(20, 64)) + 7)
    distance = frechet_distance(few, few)
    assert 0 <= distance < 1e-11 * np.trace(few.covariance)


def test_constant_features_are_at_their_squared_distance():
    a, b = statistics_of(np.full((5, 3), 1.0)), statistics_of(np.full((5, 3), 3.0))
    assert frechet_distance(a, b) == pytest.approx(12)


def test_large_samples_of_known_gaussians_come_near_their_distance():
    factor = RNG.normal(size=(4, 4))
    samples = RNG.normal(size=(200_000, 4))
    expected = frechet_distance(
        gaussian(np.ones(4), factor @ factor.T), gaussian([0] * 4, np.eye(4))
    )
    found = frechet_distance(
        statistics_of(samples[:100_000] @ factor.T + 1), statistics_of(samples[100_000:])
    )
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_streaming_and_merging_equal_the_batch(offset):
    features = RNG.normal(size=(1000, 6)) @ RNG.normal(size=(6, 6)) + offset
    streamed = FeatureStatistics.empty(6)
    for start, stop in [(0, 1), (1, 1), (1, 400), (400, 401), (401, 1000)]:
        streamed = streamed.update(features[start:stop])
    left, right = statistics_of(features[:150]), statistics_of(features[150:])
    for stats in (streamed, left.merge(right), right.merge(left)):
        assert stats.count == 1000
        np.testing.assert_allclose(stats.mean, features.mean(0), rtol=1e-14, atol=1e-14)
        # Sums of squares would have lost all digits at an offset of 1e7 (1e14 against 1).
        np.testing.assert_allclose(
            stats.covariance, np.cov(features - offset, rowvar=False), rtol=1e-7, atol=1e-7
        )


def test_float32_features_are_summed_in_float64():
    features = (RNG.normal(size=(50_000, 2)) + 1000).astype(np.float32)
    stats = FeatureStatistics.empty(2)
    for part in np.split(features, 50):
        stats = stats.update(part)
    assert stats.mean.dtype == stats.scatter.dtype == np.float64
    np.testing.assert_allclose(
        stats.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9
    )


def test_update_leaves_the_old_statistics_alone():
    before = statistics_of(np.eye(3))
    mean = before.mean.copy()
    before.update(np.full((2, 3), 9.0))
    assert before.count == 3
    np.testing.assert_array_equal(before.mean, mean)


def test_empty_statistics_merge_like_nothing():
    some = statistics_of(RNG.normal(size=(9, 3)))
    for merged in (FeatureStatistics.empty(3).merge(some), some.merge(FeatureStatistics.empty(3))):
        assert merged.count == 9
        np.testing.assert_allclose(merged.scatter, some.scatter, rtol=1e-15)
    assert FeatureStatistics.empty(3).merge(FeatureStatistics.empty(3)).count == 0


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_are_refused(count):
    few = FeatureStatistics.empty(3).update(np.zeros((count, 3)))
    enough = statistics_of(RNG.normal(size=(9, 3)))
    for pair in ((few, enough), (enough, few)):
        with pytest.raises(UserError, match=f"got {count} feature vectors.*2 or more"):
            frechet_distance(*pair)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    features = np.zeros((5, 3))
    features[2, 1] = value
    with pytest.raises(UserError, match="1 of 5 feature vectors"):
        FeatureStatistics.empty(3).update(features)
    with pytest.raises(UserError, match="second set"):
        frechet_distance(gaussian([0.0], [[1.0]]), gaussian([value], [[1.0]]))


def test_other_dimensions_are_refused():
    three, four = statistics_of(np.eye(3)), statistics_of(np.eye(4))
    with pytest.raises(UserError, match="3 and of 4"):
        frechet_distance(three, four)
    with pytest.raises(UserError, match="3 and of 4"):
        three.merge(four)
    with pytest.raises(UserError, match=r"\(4, 4\)"):
        three.update(np.eye(4))
