"""Masses of bins against SciPy, and float32 against float64 where tails and bins are extreme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffjax.likelihood.discretised import discretised_gaussian_log_prob

log_prob = jax.jit(discretised_gaussian_log_prob, static_argnames="levels")

LEVELS = np.arange(256) / 127.5 - 1


def scipy_log_mass(x, mean, std, levels=256):
    """By the tail in which SciPy keeps its digits."""
    half = 1 / (levels - 1)
    lower = np.where(x < -1 + half, -np.inf, (x - half - mean) / std)
    upper = np.where(x > 1 - half, np.inf, (x + half - mean) / std)
    flip = lower > 0
    lower, upper = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    big, small = norm.logcdf(upper), norm.logcdf(lower)
    return big + np.log(-np.expm1(small - big))


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_masses_of_all_levels_sum_to_one(levels):
    x = np.linspace(-1, 1, levels)[:, None]
    mean, log_std = (
        a.ravel() for a in np.meshgrid([-3.0, -1.0, 0.0, 0.1234, 0.996, 2.0], [-9.0, -4, -1, 0, 3])
    )
    with jax.enable_x64(True):
        mass = np.exp(log_prob(x, mean=mean, log_std=log_std, levels=levels))
    np.testing.assert_allclose(mass.sum(0), 1, rtol=1e-9)
    single = np.exp(log_prob(jnp.float32(x), mean=jnp.float32(mean),
                             log_std=jnp.float32(log_std), levels=levels))  # fmt: skip
    np.testing.assert_allclose(single.sum(0), 1, rtol=2e-5)


@pytest.mark.parametrize("std", [0.003, 0.02, 0.07, 0.078, 0.08, 0.5, 4.0, 1000.0])
def test_float64_is_scipys(std):
    mean = np.array([-0.7, 0.0, 0.3333, 1.0])
    with jax.enable_x64(True):
        ours = log_prob(LEVELS[:, None], mean=mean, log_std=jnp.log(std))
    theirs = scipy_log_mass(LEVELS[:, None], mean, std)
    # Of a narrow bin SciPy's difference of logarithms has lost digits.
    near = theirs > -300
    np.testing.assert_allclose(np.asarray(ours)[near], theirs[near], rtol=2e-9, atol=1e-9)


def test_float32_keeps_its_digits_in_tails_and_narrow_bins():
    std = np.array([1e-4, 1e-3, 0.01, 0.04, 0.0784, 0.0786, 0.3, 3.0, 1e3, 1e5])
    # On the float32 numbers themselves, so that nothing but the formula's own rounding is seen.
    x = LEVELS.astype(np.float32)[:, None]
    mean, log_std = np.float32(0.2503), np.log(std).astype(np.float32)
    single = np.asarray(log_prob(x, mean=mean, log_std=log_std), np.float64)
    with jax.enable_x64(True):
        double = np.asarray(
            log_prob(x.astype(float), mean=float(mean), log_std=log_std.astype(float))
        )
    assert np.isfinite(single).all()
    np.testing.assert_allclose(single, double, rtol=3e-6, atol=2e-5)


def test_far_tail_is_the_parabola():
    # 1e4 standard deviations away, by Mills' ratio: log Phi(-y) = -y^2/2 - log y - log(2 pi)/2.
    with jax.enable_x64(True):
        value = float(log_prob(jnp.array(0.5), mean=-0.5, log_std=jnp.log(1e-4)))
    edge = (1 - 1 / 255) / 1e-4
    assert value == pytest.approx(-(edge**2) / 2 - np.log(edge) - np.log(2 * np.pi) / 2, rel=1e-12)


SLOPES = jax.jit(jax.vmap(jax.grad(lambda x, m, s: log_prob(x, mean=m, log_std=s), argnums=(1, 2))))


def test_gradients_are_finite_and_right_at_extremes():
    x, mean, log_std = (
        jnp.asarray(a.ravel(), jnp.float32)
        for a in np.meshgrid(
            LEVELS[[0, 1, 100, 128, 254, 255]],
            [-100.0, -1.0, 0.0, float(LEVELS[128]), 1.0, 3.0],
            [-23.0, -9.2, -4.0, -2.5, 0.0, 7.0, 23.0],
        )
    )
    by_mean, by_log_std = SLOPES(x, mean, log_std)
    assert np.isfinite(by_mean).all() and np.isfinite(by_log_std).all()
    # The slope of a far bin is that of the parabola at its near edge, towards the bin.
    far = np.asarray((log_std < -9) & (log_std > -10) & (mean == 3) & (x < 1))
    std, m = np.exp(np.float64(log_std[far])), np.float64(mean[far])
    edge = (m - np.float64(x[far]) - 1 / 255) / std
    np.testing.assert_allclose(by_mean[far], -edge / std, rtol=1e-4)
    np.testing.assert_allclose(by_log_std[far], edge**2, rtol=1e-4)


def test_gradients_are_central_differences():
    x, mean, log_std = (
        a.ravel() for a in np.meshgrid(LEVELS[::51], [0.1, -0.9], [-5.0, -4.2, -2.5, 1.0])
    )
    d = 1e-6
    with jax.enable_x64(True):
        by_mean, by_log_std = SLOPES(x, mean, log_std)
        up, down, wide, slim = (
            log_prob(x, mean=mean + a, log_std=log_std + b)
            for a, b in ((d, 0), (-d, 0), (0, d), (0, -d))
        )
        np.testing.assert_allclose(by_mean, (up - down) / (2 * d), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(by_log_std, (wide - slim) / (2 * d), rtol=1e-5, atol=1e-5)


def test_fewer_than_two_levels_are_refused():
    with pytest.raises(ValueError, match="levels must be at least 2, not 1"):
        log_prob(jnp.zeros(1), mean=0.0, log_std=0.0, levels=1)
