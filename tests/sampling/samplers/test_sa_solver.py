"""SA-Solver: its law on Gaussian data at few steps, where its noise is, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, samplers, schedules
from tests.sampling.samplers.known import FLOW, KEY, MEAN, gaussian_denoiser, marginal_std

EDM = schedules.karras()


def end(sampler, steps, **options):
    """300,000 draws from sigma 20 to 0.1, and the std that they should have."""
    grid = grids.stop_before_clean(grids.exponential(EDM, steps + 1, sigma_min=0.1, sigma_max=20))
    x_T = MEAN + marginal_std(grid, 0) * jax.random.normal(KEY, (500, 600))
    x = sampler(gaussian_denoiser(EDM), x_T, grid=grid, key=jax.random.key(3), **options).x_0
    return np.asarray(x), marginal_std(grid, -1)


@pytest.mark.parametrize(
    "options",
    [{}, {"published": False}, {"predictor_order": 3, "corrector_order": 4}],
    ids=["2 and 2, published", "2 and 2", "3 and 4"],
)
def test_the_laws_error_falls_faster_than_that_of_order_1(options):
    """Of two Gaussians, Wasserstein's distance is that of (mean, std)."""

    def distance(sampler, steps, **options):
        x, std = end(sampler, steps, **options)
        return np.hypot(x.mean() - MEAN, x.std() - std)

    order_1 = distance(samplers.sde_dpm_solver_pp, 24, order=1)
    coarse, fine = (distance(samplers.sa_solver, n, **options) for n in (12, 24))
    assert fine < coarse / 3
    assert fine < order_1 / 3


def test_an_order_1_predictor_that_is_not_corrected_is_sde_dpm_solver_pp():
    """tau = 1 is its eta = 1: the last step, which nothing corrects, from one start."""
    grid = grids.stop_before_clean(grids.from_times(FLOW, np.array([0.8, 0.5])))
    x_T = jax.random.normal(KEY, (4, 3))
    run = dict(grid=grid, key=KEY)
    ours = samplers.sa_solver(gaussian_denoiser(FLOW), x_T, **run).x_0
    theirs = samplers.sde_dpm_solver_pp(gaussian_denoiser(FLOW), x_T, order=1, **run).x_0
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_noise_is_drawn_between_two_levels_alone():
    grid = grids.from_times(FLOW, np.array([0.9, 0.6, 0.3, 0.1]))
    x_T = jnp.zeros((2, 3))

    def run(key, between):
        return samplers.sa_solver(gaussian_denoiser(FLOW), x_T, grid=grid, key=key, between=between,
                                  keep_trajectory=True).trajectory  # fmt: skip

    # noise / signal is 9, 1.5, 0.43, 0.11: the second and third steps alone are in it.
    one, other = (run(jax.random.key(seed), (0.2, 2.0)) for seed in (1, 2))
    np.testing.assert_array_equal(one[1], other[1])
    assert float(jnp.abs(one[2] - other[2]).min()) > 0
    still = samplers.sa_solver(gaussian_denoiser(FLOW), x_T, grid=grid, tau=0.0).x_0
    np.testing.assert_allclose(run(KEY, (20.0, 30.0))[-1], still, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "sa_solver with tau > 0 draws noise"),
        ({"predictor_order": 4}, "predictor has orders 1 to 3, not 4"),
        ({"corrector_order": 5}, "corrector has orders 1 to 4, not 5"),
        ({"tau": -1.0}, "tau must be at least 0"),
        ({"between": (1.0, 1.0)}, "lowest < highest"),
    ],
)
def test_what_it_refuses(options, message):
    grid = grids.trailing(FLOW, 6)
    with pytest.raises(ValueError, match=message):
        samplers.sa_solver(gaussian_denoiser(FLOW), jnp.ones((2, 3)), grid=grid, **options)
