"""Samplers that go back up in noise keep the law."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, samplers, schedules
from tests.sampling.samplers.known import FLOW, KEY, MEAN, STD, gaussian_denoiser


@pytest.mark.parametrize("schedule", [schedules.karras(), schedules.linear_beta(1000)],
                         ids=["edm", "vp"])  # fmt: skip
def test_churn_keeps_the_law_and_none_is_heun(schedule):
    n, grid = 4000, grids.karras(schedule, 40)
    x_T = grid.signal_scale[0] * MEAN + jnp.hypot(
        grid.signal_scale[0] * STD, grid.noise_scale[0]
    ) * jax.random.normal(KEY, (n, 1))  # fmt: skip
    denoise = gaussian_denoiser(schedule)
    run = functools.partial(samplers.edm_stochastic, denoise, x_T, grid=grid, schedule=schedule)
    x = np.asarray(run(key=jax.random.key(4), noise_factor=1.0).x_0)
    assert abs(x.mean() - MEAN) < 4 * STD / np.sqrt(n) + 0.01 * STD
    assert abs(x.std() - STD) < 4 * STD / np.sqrt(2 * n) + 0.01 * STD
    still = samplers.heun(denoise, x_T, grid=grid).x_0
    np.testing.assert_allclose(run(churn=0.0).x_0, still, rtol=1e-5, atol=1e-5)
    assert np.abs(x - np.asarray(still)).mean() > 0.1 * STD  # noise made other images


def test_restart_keeps_the_law_and_repairs_what_few_steps_spoil():
    schedule, n = schedules.karras(), 4000
    grid = grids.karras(schedule, 30)
    x_T = MEAN + jnp.hypot(STD, 80.0) * jax.random.normal(KEY, (n, 1))
    # A denoiser that errs at high noise: Restart forgets what was spoilt there.
    exact = gaussian_denoiser(schedule)

    def spoilt(x_t, t, cond=None):
        x_0 = exact(x_t, t, cond).x_0
        noise = schedule(jnp.asarray(t)).noise_scale
        x_0 = x_0 + jnp.where(noise > 2.5, 0.5, 0.0)
        return dj.Estimates(x_0, (x_t - x_0) / noise)

    run = functools.partial(samplers.restart, grid=grid, key=jax.random.key(4))
    kept = np.asarray(run(exact, x_T, intervals=((0.1, 2.0, 2),)).x_0)
    assert abs(kept.mean() - MEAN) < 4 * STD / np.sqrt(n) + 0.02 * STD
    assert abs(kept.std() - STD) < 4 * STD / np.sqrt(2 * n) + 0.02 * STD
    without = run(spoilt, x_T, intervals=()).x_0.mean() - MEAN
    with_it = run(spoilt, x_T, intervals=((0.05, 2.0, 3),)).x_0.mean() - MEAN
    assert abs(with_it) < 0.5 * abs(without)
    with pytest.raises(ValueError, match="holds no step"):
        run(exact, x_T, intervals=((1.0, 1.01, 1),))


def test_langevin_steps_keep_the_law():
    # The step is measured in norms, which say little in few dimensions.
    schedule, n, dimensions = schedules.linear_beta(1000), 300, 64
    x_T = jax.random.normal(jax.random.key(1), (n, dimensions))
    x = np.asarray(samplers.predictor_corrector(
        gaussian_denoiser(schedule), x_T, grid=grids.trailing(schedule, 200), key=KEY, snr=0.1,
        corrections=2,
    ).x_0)  # fmt: skip
    count = n * dimensions
    assert abs(x.mean() - MEAN) < 4 * STD / np.sqrt(count) + 0.02 * STD
    assert abs(x.std() - STD) < 4 * STD / np.sqrt(2 * count) + 0.04 * STD
    plain = samplers.ddim(gaussian_denoiser(schedule), x_T, grid=grids.trailing(schedule, 200),
                          key=KEY, eta=1.0)  # fmt: skip
    none = samplers.predictor_corrector(
        gaussian_denoiser(schedule), x_T, grid=grids.trailing(schedule, 200), key=KEY, corrections=0
    )
    np.testing.assert_allclose(none.x_0, plain.x_0, rtol=1e-3, atol=1e-4)


def test_predictor_corrector_refuses_an_snr_that_is_not_positive():
    with pytest.raises(ValueError, match="snr"):
        samplers.predictor_corrector(
            gaussian_denoiser(FLOW),
            jnp.ones((2, 3)),
            grid=grids.trailing(FLOW, 6),
            key=KEY,
            snr=0.0,
        )
