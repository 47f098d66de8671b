"""Masses of levels against SciPy's logistic distribution, and mixtures against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import logistic

from diffjax.likelihood.logistic_mixture import (
    conditional_means,
    discretised_logistic_log_prob,
    logistic_mixture_log_prob,
    mixture_from_outputs,
    number_of_outputs,
    sample_logistic_mixture,
)

log_prob = jax.jit(discretised_logistic_log_prob, static_argnames="levels")


def scipy_log_mass(x, mean, scale, levels):
    """By the tail in which SciPy keeps its digits."""
    half = 1 / (levels - 1)
    lower = np.where(x < -1 + half, -np.inf, x - half)
    upper = np.where(x > 1 - half, np.inf, x + half)
    lower, upper = (lower - mean) / scale, (upper - mean) / scale
    flip = lower > 0
    lower, upper = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    big, small = logistic.logcdf(upper), logistic.logcdf(lower)
    return big + np.log(-np.expm1(small - big))


def grid(levels):
    """All levels with means in and out of the range, and scales from e^-7 to e^3."""
    x = np.linspace(-1, 1, levels)[:, None]
    mean, log_scale = np.meshgrid([-3.0, -1.0, 0.0, 0.1234, 0.996, 2.0], [-7.0, -4, -1, 0, 3])
    return [np.array(a) for a in np.broadcast_arrays(x, mean.ravel(), log_scale.ravel())]


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_masses_of_all_levels_sum_to_one_and_are_scipys(levels):
    x, mean, log_scale = grid(levels)
    with jax.enable_x64(True):
        ours = np.asarray(log_prob(jnp.asarray(x), mean=mean, log_scale=log_scale, levels=levels))
    np.testing.assert_allclose(np.exp(ours).sum(0), 1, rtol=1e-12)
    theirs = scipy_log_mass(x, mean, np.exp(log_scale), levels)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_float32_is_float64_where_bins_are_narrow_and_far():
    x, mean, log_scale = (np.float32(a) for a in grid(256))
    single = log_prob(jnp.asarray(x), mean=jnp.asarray(mean), log_scale=jnp.asarray(log_scale))
    with jax.enable_x64(True):
        double = log_prob(jnp.asarray(x, float), mean=np.float64(mean),
                          log_scale=np.float64(log_scale))  # fmt: skip
    np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda m: log_prob(x, mean=m, log_scale=jnp.asarray(log_scale)).sum())(mean)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(("channels", "levels"), [(1, 256), (2, 16), (3, 6)])
def test_probabilities_of_whole_pixels_sum_to_one(channels, levels):
    count = number_of_outputs(channels=channels, components=4)
    outputs = jax.random.normal(jax.random.key(0), (5, 1, count))
    values = np.linspace(-1, 1, levels)
    pixels = jnp.asarray(list(itertools.product(values, repeat=channels)), jnp.float32)
    mixture = mixture_from_outputs(jnp.repeat(outputs, len(pixels), 1), channels=channels)
    x = jnp.broadcast_to(pixels, (5, *pixels.shape))
    found = logistic_mixture_log_prob(mixture, x, levels=levels)
    np.testing.assert_allclose(logsumexp(np.float64(found), axis=1), 0, atol=2e-5)


def test_a_channel_depends_on_those_before_it_alone():
    outputs = jax.random.normal(jax.random.key(0), (number_of_outputs(channels=3, components=4),))
    mixture = mixture_from_outputs(outputs, channels=3)
    slopes = np.asarray(jax.jacobian(lambda x: conditional_means(mixture, x))(jnp.ones(3)))
    for channel, other in itertools.product(range(3), repeat=2):
        assert (slopes[:, channel, other] != 0).all() == (other < channel)
        assert (slopes[:, channel, other] == 0).all() == (other >= channel)
    # So what is left of the joint distribution after summing over blue is free of its parameters.
    levels = 5
    values = jnp.linspace(-1, 1, levels)

    def of_red_and_green(blue_mean):
        means = mixture.means.at[:, 2].set(blue_mean)
        x = jnp.stack([jnp.full(levels, 0.5), jnp.full(levels, -0.5), values], axis=-1)
        many = jax.tree.map(
            lambda a: jnp.broadcast_to(a, (levels, *a.shape)), mixture._replace(means=means)
        )
        return jnp.exp(logistic_mixture_log_prob(many, x, levels=levels)).sum()

    np.testing.assert_allclose(of_red_and_green(-2.0), of_red_and_green(3.0), rtol=1e-5)


@pytest.mark.parametrize(("channels", "levels"), [(1, 7), (3, 3)])
def test_samples_have_the_enumerated_probabilities(channels, levels):
    count, draws = number_of_outputs(channels=channels, components=3), 40_000
    outputs = jax.random.normal(jax.random.key(3), (count,))
    mixture = mixture_from_outputs(jnp.broadcast_to(outputs, (draws, count)), channels=channels)
    x = sample_logistic_mixture(mixture, jax.random.key(1), levels=levels)
    number = np.rint((np.asarray(x) + 1) * (levels - 1) / 2).astype(int)
    np.testing.assert_allclose(x, number * 2 / (levels - 1) - 1, atol=1e-6)
    place = number @ levels ** np.arange(channels)[::-1]
    seen = np.bincount(place, minlength=levels**channels) / draws
    values = np.linspace(-1, 1, levels)
    pixels = jnp.asarray(list(itertools.product(values, repeat=channels)), jnp.float32)
    of_each = jax.tree.map(lambda a: a[: len(pixels)], mixture)
    p = np.exp(np.asarray(logistic_mixture_log_prob(of_each, pixels, levels=levels), np.float64))
    assert (np.abs(seen - p) < 5 * np.sqrt(p * (1 - p) / draws) + 1e-9).all()


def test_outputs_of_no_mixture_are_refused():
    with pytest.raises(ValueError, match="7 outputs: expected a multiple of 10 for 3 channels"):
        mixture_from_outputs(jnp.zeros((2, 7)), channels=3)
