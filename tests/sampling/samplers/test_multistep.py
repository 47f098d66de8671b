"""Multistep solvers: a second implementation, and DEIS in time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, samplers, schedules
from tests.sampling.samplers.known import FLOW, KEY, gaussian_denoiser, middle, middle_solution


def test_dpm_solver_pp_2m_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="a second implementation of 2M")
    torch = pytest.importorskip("torch", reason="diffusers needs torch")
    theirs = diffusers.DPMSolverMultistepScheduler(
        1000,
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(20)
    x = torch.tensor([[1.3], [-0.7]], dtype=torch.float64)
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(x), t, x).prev_sample
    schedule = schedules.linear_beta(1000)
    grid = grids.from_times(schedule, theirs.timesteps.numpy() + 1)

    def denoise(x_t, t, cond=None):
        x_0 = jnp.tanh(x_t)
        return dj.Estimates(x_0, x_0)

    ours = samplers.dpm_solver_pp_2m(denoise, jnp.array([[1.3], [-0.7]]), grid=grid).x_0
    np.testing.assert_allclose(ours, x.numpy(), rtol=1e-3)


@pytest.mark.parametrize("schedule", [schedules.continuous_cosine(), schedules.karras()],
                         ids=["cosine", "edm"])  # fmt: skip
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_t(order, schedule):
    with jax.enable_x64(True):
        x_T = jnp.array([[-1.0], [0.4], [2.0]]) * float(schedule(0.9).noise_scale)
        exact = middle_solution(schedule, x_T)
        errors = [
            np.abs(np.asarray(samplers.deis(
                gaussian_denoiser(schedule), x_T, grid=middle(schedule, steps), order=order,
                schedule=schedule,
            ).x_0) - exact).max()
            for steps in (64, 128)
        ]  # fmt: skip
    rate = np.log2(errors[0] / errors[1])
    assert rate > min(order, 2) - 0.2 and rate < order + 0.2
    for steps in (1, 2, 10):
        grid = grids.trailing(schedule, steps)
        x = samplers.deis(gaussian_denoiser(schedule), jnp.float32(x_T), grid=grid,
                          schedule=schedule).x_0  # fmt: skip
        assert np.isfinite(x).all()


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (samplers.deis, {"variable": "t"}, "schedule"),
        (samplers.deis, {"variable": "sigma"}, "variable"),
        (samplers.sde_dpm_solver_pp, {}, "key"),
        (samplers.sde_dpm_solver_pp, {"eta": -1.0, "key": KEY}, "eta"),
    ],
)
def test_what_multistep_samplers_refuse(sampler, options, message):
    grid = grids.trailing(FLOW, 6)
    with pytest.raises(ValueError, match=message):
        sampler(gaussian_denoiser(FLOW), jnp.ones((2, 3)), grid=grid, **options)
