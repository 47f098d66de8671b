"""Steps of order 2 between noises: the law's error, and what they are without noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, samplers, schedules
from tests.sampling.samplers.known import (
    FLOW,
    KEY,
    MEAN,
    SCHEDULES,
    gaussian_denoiser,
    marginal_std,
    middle,
    middle_solution,
)

EDM = schedules.karras()
CHURN = {"churn": 4.0, "noise_factor": 1.0}
CASES = {
    "euler_ancestral": (samplers.euler_ancestral, {}, 1),
    "dpm2_ancestral": (samplers.dpm2_ancestral, {"schedule": EDM}, 2),
    "dpm_solver_pp_2s_ancestral": (samplers.dpm_solver_pp_2s_ancestral, {"schedule": EDM}, 2),
    "euler_churn": (samplers.euler_churn, {"schedule": EDM, **CHURN}, 1),
    "dpm2_churn": (samplers.dpm2_churn, {"schedule": EDM, **CHURN}, 2),
    "edm_stochastic": (samplers.edm_stochastic, {"schedule": EDM, **CHURN}, 2),
}


def std_errors(sampler, options, steps):
    """Relative errors of the standard deviation from sigma 20 to 0.1; the noise is exact.

    An exact solution of the ODE, with the noise, would keep the marginals: what is seen is the
    ODE's solver's error. 300,000 draws tell the std to 1.3e-3.
    """
    errors = []
    for n in steps:
        grid = grids.exponential(EDM, n + 1, sigma_min=0.1, sigma_max=20)
        grid = grids.stop_before_clean(grid)
        x_T = MEAN + marginal_std(grid, 0) * jax.random.normal(KEY, (500, 600))
        x = sampler(gaussian_denoiser(EDM), x_T, grid=grid, key=jax.random.key(3), **options).x_0
        x = np.asarray(x)
        assert abs(x.mean() - MEAN) < 4 * x.std() / np.sqrt(x.size)
        errors.append(abs(x.std() / marginal_std(grid, -1) - 1))
    return np.array(errors)


@pytest.mark.parametrize("name", CASES)
def test_the_laws_error_falls_with_the_solvers_order(name):
    sampler, options, order = CASES[name]
    errors = std_errors(sampler, options, (8, 32))
    assert abs(np.log2(errors[0] / errors[1]) / 2 - order) < 0.3
    assert errors[1] > 2.5e-3  # above what the draws' number blurs


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["dpm2_ancestral", "dpm_solver_pp_2s_ancestral", "dpm2_churn"])
def test_without_noise_they_are_of_order_2(name, schedule):
    still = {"churn": 0.0} if name == "dpm2_churn" else {"eta": 0.0}
    with jax.enable_x64(True):
        x_T = jnp.array([[-1.0], [0.4], [2.0]]) * float(schedule(0.9).noise_scale)
        exact = middle_solution(schedule, x_T)
        errors = [
            np.abs(np.asarray(getattr(samplers, name)(
                gaussian_denoiser(schedule), x_T, grid=middle(schedule, steps), schedule=schedule,
                **still,
            ).x_0) - exact).max()
            for steps in (64, 128)
        ]  # fmt: skip
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.2


def test_dpm2_without_noise_is_the_singlestep_solver():
    """On the grid that has the stages as points, those in lambda."""
    grid = grids.stop_before_clean(grids.karras(EDM, 7))
    denoise = gaussian_denoiser(EDM)
    with jax.enable_x64(True):
        x_T = jnp.array([[-60.0], [30.0]])
        for single, two_stage in (
            (samplers.dpm2, samplers.dpm2_ancestral),
            (samplers.dpm_solver_pp_2s, samplers.dpm_solver_pp_2s_ancestral),
        ):
            staged = single(denoise, x_T, grid=grids.with_stages(EDM, grid)).x_0
            ours = two_stage(denoise, x_T, grid=grid, schedule=EDM, eta=0.0).x_0
            np.testing.assert_allclose(ours, staged, rtol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (samplers.dpm2_ancestral, {}, "dpm2_ancestral with eta > 0 draws noise"),
        (samplers.dpm_solver_pp_2s_ancestral, {"eta": 1.5, "key": KEY}, r"eta must be in \[0, 1\]"),
        (samplers.dpm2_churn, {}, "dpm2_churn with churn > 0 draws noise"),
        (samplers.dpm2_churn, {"churn": -1.0}, "churn must be at least 0, not -1"),
        (samplers.euler_churn, {}, "euler_churn with churn > 0 draws noise"),
        (samplers.euler_churn, {"churn": -1.0}, "churn must be at least 0, not -1"),
    ],
)
def test_what_they_refuse(sampler, options, message):
    grid = grids.trailing(FLOW, 6)
    with pytest.raises(ValueError, match=message):
        sampler(gaussian_denoiser(FLOW), jnp.ones((2, 3)), grid=grid, schedule=FLOW, **options)
