"""Precision and recall where they are known by hand, by integrals, or by SciPy's search tree."""

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.evaluation.precision_recall import precision_recall


def test_half_of_the_modes():
    """Samples of one of two far modes: all are plausible, and half of the data is missing."""
    rng = np.random.default_rng(0)
    near, far = rng.uniform(-1, 1, (400, 2)), rng.uniform(-1, 1, (400, 2)) + 100
    samples = rng.uniform(-1, 1, (400, 2))
    found = precision_recall(np.concatenate([near, far]), samples)
    assert found.precision > 0.95 and 0.47 < found.recall <= 0.5
    swapped = precision_recall(samples, np.concatenate([near, far]))
    assert swapped.recall > 0.95 and 0.47 < swapped.precision <= 0.5


def test_uniform_squares_overlap_by_their_area():
    """Of squares shifted by half a side, half of each is in the other, up to the boundary."""
    rng = np.random.default_rng(1)
    real, samples = rng.uniform(0, 1, (3000, 2)), rng.uniform((0.5, 0), (1.5, 1), (3000, 2))
    found = precision_recall(real, samples)
    assert found.precision == pytest.approx(0.5, abs=0.04)
    assert found.recall == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("dimensions", [2, 30])
def test_a_search_tree_finds_the_same(dimensions):
    spatial = pytest.importorskip("scipy.spatial")
    rng = np.random.default_rng(2)
    # A mean far from zero, as features have, and more rows than one block of distances.
    real = rng.normal(50, 1, (1500, dimensions))
    samples = rng.normal(50.5, 0.7, (1100, dimensions))

    def inside(points, centres, k):
        radii = spatial.cKDTree(centres).query(centres, k + 1)[0][:, -1]
        distances = spatial.distance.cdist(points, centres)
        return (distances <= radii).any(axis=1).mean()

    for k in (1, 3, 5):
        found = precision_recall(real, samples, neighbours=k)
        assert found.precision == inside(samples, real, k)
        assert found.recall == inside(real, samples, k)


def test_copies_are_inside():
    """Each feature several times: all radii are 0, and a copy is on the surface of its ball."""
    rows = np.repeat(np.random.default_rng(3).normal(1000, 1, (10, 64)), 5, axis=0)
    assert precision_recall(rows, rows) == (1.0, 1.0)
    assert precision_recall(rows, rows + 1e-3) == (0.0, 0.0)


def test_what_cannot_be_measured():
    with pytest.raises(UserError, match="3 real features; expected more than 3"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(UserError, match="one network"):
        precision_recall(np.zeros((9, 2)), np.zeros((9, 3)))
    with pytest.raises(UserError, match="NaN or infinity in the generated"):
        precision_recall(np.zeros((9, 2)), np.full((9, 2), np.nan))
