"""Bits per dimension of a code whose length is known, and the spread of a mean."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax.likelihood.bits import Summary, bits_per_dim, summarise


def test_a_fair_choice_of_256_levels_is_8_bits_per_dimension():
    nats = -12 * jnp.log(jnp.full(3, 1 / 256))  # images of 12 independent uniform values
    np.testing.assert_allclose(bits_per_dim(nats, dimensions=12), 8, rtol=1e-6)


def test_summary_is_scipys_in_float64():
    values = 3.5 + np.random.default_rng(0).normal(size=1000).astype(np.float32) / 1000
    summary = summarise(jnp.asarray(values))
    assert summary.mean == pytest.approx(np.mean(values, dtype=np.float64), rel=1e-14)
    assert summary.standard_error == pytest.approx(stats.sem(values.astype(np.float64)), rel=1e-12)
    assert summary.count == 1000


def test_one_image_has_a_mean_and_no_spread():
    summary = summarise([2.5])
    assert summary[::2] == (2.5, 1) and math.isnan(summary.standard_error)
    assert isinstance(summary, Summary)


@pytest.mark.parametrize("values", [[], 3.0, [[1.0, 2.0]]])
@pytest.mark.usefixtures("unchecked")
def test_values_that_are_not_one_an_image_are_refused(values):
    with pytest.raises(ValueError, match=r"one value an image, \(count,\)"):
        summarise(values)


def test_no_dimensions_are_refused():
    with pytest.raises(ValueError, match="dimensions must be at least 1, not 0"):
        bits_per_dim(1.0, dimensions=0)
