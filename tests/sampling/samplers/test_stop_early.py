"""Grids that stop above clean data: the last step has its law's noise, as every other step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import editing, grids, samplers, schedules
from tests.sampling.samplers.cases import STOCHASTIC, STOCHASTIC_OTHERS, find
from tests.sampling.samplers.known import KEY, MEAN, gaussian_denoiser, marginal_std

SCHEDULE = schedules.linear_beta(1000)
# 20 steps to signal 0.93, noise 0.37: without its noise the last would end at 80 % of the std.
TIMES = np.linspace(1000, 130, 21).round().astype(int)
GRID = grids.stop_before_clean(grids.from_times(SCHEDULE, TIMES))
# Narrow data, of which few steps make next to no error; fixed-large variance does, and is below.
WIDTH = 0.05
NAMES = [name for name in (*STOCHASTIC, *STOCHASTIC_OTHERS) if name != "ancestral, beta"]


def start(n, dimensions):
    std = marginal_std(GRID, 0, WIDTH)
    return GRID.signal_scale[0] * MEAN + std * jax.random.normal(KEY, (n, dimensions))


def check_the_end(x):
    """Against N(signal mean, (signal width)^2 + noise^2), within four standard errors and 1.5 %."""
    x, std = np.asarray(x), marginal_std(GRID, -1, WIDTH)
    mean_error = x.mean() - GRID.signal_scale[-1] * MEAN
    assert abs(mean_error) < 4 * std / np.sqrt(x.size) + 0.015 * std
    assert abs(x.std() - std) < 4 * std / np.sqrt(2 * x.size) + 0.015 * std


@pytest.mark.parametrize("name", NAMES)
def test_the_end_has_the_marginals_law(name):
    sampler = find(name, SCHEDULE)
    if name == "predictor_corrector":
        sampler = functools.partial(sampler, snr=0.05)  # Langevin steps of no size have no error
    # In norms, of which Langevin steps are made, 32 dimensions say enough.
    x_T = start(300, 32)
    denoise = gaussian_denoiser(SCHEDULE, std=WIDTH)
    check_the_end(sampler(denoise, x_T, grid=GRID, key=jax.random.key(7)).x_0)


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_one_ancestral_step_to_noise_has_the_variance_of_its_law(variance):
    """One coarse step, whose noise is most of the result, on data that are one point.

    beta_tilde then gives the marginal itself. With beta, x_s is the posterior's mean, whose
    variance is what the posterior leaves of the marginal's, and noise of variance var_ts.
    """
    grid = grids.stop_before_clean(grids.from_times(SCHEDULE, np.array([900, 400])))
    n = 40_000
    x_T = MEAN * grid.signal_scale[0] + grid.noise_scale[0] * jax.random.normal(KEY, (n, 1))
    x = samplers.ancestral(
        gaussian_denoiser(SCHEDULE, std=0.0), jnp.float32(x_T), grid=grid, key=jax.random.key(1),
        variance=variance,
    ).x_0  # fmt: skip
    # By regression: what x_s and x_t share is cov(x_s, x_t) = signal_ts noise_s^2.
    betas = 1 - SCHEDULE.alpha_bar[1:] / SCHEDULE.alpha_bar[:-1]
    kept = np.prod(1 - betas[400:900])  # signal_ts^2, step by step
    shared = kept * grid.noise_scale[1] ** 4 / grid.noise_scale[0] ** 2
    expected = grid.noise_scale[1] ** 2 if variance == "beta_tilde" else shared + 1 - kept
    np.testing.assert_allclose(float(x.var()), expected, rtol=4 * np.sqrt(2 / n))


def test_ddim_with_eta_1_is_ancestral_to_the_end():
    grid = grids.stop_before_clean(grids.trailing(SCHEDULE, 5))
    x_T = jax.random.normal(KEY, (4, 3))
    run = functools.partial(gaussian_denoiser(SCHEDULE))
    a = samplers.ancestral(run, x_T, grid=grid, key=KEY).x_0
    b = samplers.ddim(run, x_T, grid=grid, key=KEY, eta=1.0).x_0
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_learned_variance_keeps_its_noise_in_the_last_step():
    grid = grids.stop_before_clean(grids.from_times(SCHEDULE, np.array([900, 400])))
    x_T = jnp.zeros((5000, 1))

    def denoise(x_t, t, cond=None):
        return dj.Estimates(0 * x_t, 0 * x_t, jnp.ones_like(x_t))  # the large variance

    learned, large = (
        samplers.ancestral(denoise, x_T, grid=grid, key=KEY, variance=variance).x_0
        for variance in ("learned", "beta")
    )
    assert float(large.std()) > 0.5
    np.testing.assert_allclose(learned, large, rtol=1e-4)


def test_repaint_ends_with_the_marginals_law():
    """Without a known pixel it is ancestral sampling with returns, which keep the law."""
    x_T = start(300, 32)
    check_the_end(editing.repaint(
        gaussian_denoiser(SCHEDULE, std=WIDTH), x_T, grid=GRID, key=jax.random.key(7),
        known=0 * x_T, mask=jnp.zeros(32), jump=5, resamples=2,
    ).x_0)  # fmt: skip
