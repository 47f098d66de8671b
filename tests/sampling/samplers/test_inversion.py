"""From data back to noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, samplers, schedules
from tests.sampling.samplers.known import (
    FLOW,
    gaussian_denoiser,
    middle,
    middle_solution,
    mixture_denoiser,
)


@pytest.mark.parametrize("iterations", [0, 20])
def test_inversion_returns_the_better_the_more_steps(iterations):
    schedule = schedules.cosine(1000)
    denoise = mixture_denoiser(schedule, std=0.3)
    x_0 = jnp.array([[-1.2], [-0.6], [0.9], [1.3]])
    errors = []
    for steps in (50, 100, 200):
        grid = grids.trailing(schedule, steps)
        grid = grids.Grid(*(column[1:] for column in grid))  # without pure noise
        up = samplers.ddim_inversion(denoise, x_0, grid=grid, iterations=iterations).x_0
        back = samplers.ddim(denoise, up, grid=grid).x_0
        errors.append(float(jnp.abs(back - x_0).max()))
    if iterations:
        assert max(errors) < 1e-2
    else:
        rates = np.log2(np.array(errors[:-1]) / errors[1:])
        np.testing.assert_allclose(rates, 1, atol=0.4)


def cycle_error(schedule, grid, encode, sample):
    """The largest way from data up, down and back to where it was; as many evaluations each."""
    denoise = mixture_denoiser(schedule, std=0.3)
    x_0 = jnp.array([[-1.2], [-0.6], [0.9], [1.3]])
    x_T = encode(denoise, x_0, grid=grid).x_0
    return float(jnp.abs(sample(denoise, x_T, grid=grid).x_0 - x_0).max())


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", ["cosine", "linear", "edm"])
def test_multistep_inversion_returns_nearer_than_ddims_at_equal_evaluations(name, order):
    schedule, make_grid = {
        "cosine": (schedules.cosine(1000), grids.trailing),
        "linear": (schedules.linear_beta(1000), grids.karras),
        "edm": (schedules.karras(), grids.karras),
    }[name]
    sample = functools.partial(samplers.deis, variable="log_rho", order=order)
    encode = functools.partial(samplers.multistep_inversion, order=order)
    ours, ddims = [], []
    with jax.enable_x64(True):
        for steps in (20, 50, 100):
            grid = make_grid(schedule, steps)
            if name == "cosine":
                grid = grids.Grid(*(column[1:] for column in grid))  # next to pure noise
            ours.append(cycle_error(schedule, grid, encode, sample))
            ddims.append(cycle_error(schedule, grid, samplers.ddim_inversion, samplers.ddim))
    assert np.all(np.array(ours) < 0.3 * np.array(ddims))
    assert ours[-1] < 0.06 * ddims[-1]
    # From 50 to 100 steps: order 1 halves the error, order 2 divides it by 4.
    assert ddims[1] / ddims[2] < 2.4
    assert ours[1] / ours[2] > 3


@pytest.mark.parametrize("order", [1, 2, 3])
def test_multistep_inversion_is_the_odes_solver_upwards(order):
    """Between two noises, against the closed form of the Gaussian's flow: order of convergence."""
    schedule = schedules.continuous_cosine()
    with jax.enable_x64(True):
        x_T = jnp.array([[-1.0], [0.4], [2.0]])
        x_0 = jnp.array(middle_solution(schedule, x_T))
        errors = [
            float(jnp.abs(samplers.multistep_inversion(
                gaussian_denoiser(schedule), x_0, grid=middle(schedule, steps), order=order
            ).x_0 - x_T).max())
            for steps in (64, 128)
        ]  # fmt: skip
    # A first step of order 1 caps what is seen at 2.
    assert np.log2(errors[0] / errors[1]) > min(order, 2) - 0.2
    assert errors[1] < (0.05 if order == 1 else 1e-3)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_multistep_inversion_in_few_steps(steps):
    schedule = schedules.linear_beta(1000)
    grid = grids.trailing(schedule, steps)
    x_0 = jnp.array([[-0.4], [0.3], [0.9]])
    path = samplers.multistep_inversion(
        gaussian_denoiser(schedule), x_0, grid=grid, order=3, keep_trajectory=True
    )
    assert path.trajectory.shape == (steps + 1, 3, 1)
    assert np.isfinite(path.trajectory).all()
    np.testing.assert_array_equal(path.trajectory[0], x_0)


@pytest.mark.parametrize("invert", [samplers.ddim_inversion, samplers.multistep_inversion])
def test_inversion_refuses_a_grid_from_pure_noise(invert):
    with pytest.raises(ValueError, match="pure noise"):
        invert(gaussian_denoiser(FLOW), jnp.ones((2, 3)), grid=grids.trailing(FLOW, 6))


def test_multistep_inversion_refuses_another_order():
    with pytest.raises(ValueError, match="orders 1 to 3, not 4"):
        samplers.multistep_inversion(
            gaussian_denoiser(FLOW), jnp.ones((2, 3)), grid=grids.trailing(FLOW, 6), order=4
        )
