"""Runge and Kutta's methods on flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, samplers, schedules
from tests.sampling.samplers.known import (
    FLOW,
    gaussian_denoiser,
    middle,
    middle_solution,
    ode_solution,
)


def test_rk4_is_of_order_4():
    with jax.enable_x64(True):
        x_T = jnp.array([[-1.0], [0.4], [2.0]])
        errors = []
        for steps in (8, 16, 32):
            grid = middle(FLOW, steps)
            x = samplers.rk4(gaussian_denoiser(FLOW), x_T, grid=grid).x_0
            errors.append(np.abs(np.asarray(x) - middle_solution(FLOW, x_T)).max())
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 4, atol=0.3)


@pytest.mark.parametrize("steps", [2, 3, 4, 7])
def test_rk4_reaches_clean_data(steps):
    x_T = jnp.array([[-1.5], [0.2], [1.0]])
    exact = ode_solution(np.asarray(x_T), (0.0, 1.0))
    denoise = gaussian_denoiser(FLOW)
    x = samplers.rk4(denoise, x_T, grid=grids.trailing(FLOW, steps)).x_0
    np.testing.assert_allclose(x, exact, atol=2 / steps**2)


def test_rk4_refuses_stages_that_are_not_half_way():
    with pytest.raises(ValueError, match="half-way"):
        samplers.rk4(
            gaussian_denoiser(FLOW), jnp.ones((2, 3)), grid=grids.karras(schedules.karras(), 6)
        )


def test_heun3_is_heuns_of_1900_on_an_even_grid():
    """Its tableau on scalars: 0 | 1/3 | 2/3, weights 1/4, 0, 3/4."""
    velocity = lambda x, t: np.sin(x) + t  # noqa: E731
    grid = middle(FLOW, 9)
    x = np.array([[0.3], [-1.2]])
    for t, s in zip(grid.t[0:-1:3], grid.t[3::3], strict=True):
        h = s - t
        first = velocity(x, t)
        second = velocity(x + h / 3 * first, t + h / 3)
        third = velocity(x + 2 * h / 3 * second, t + 2 * h / 3)
        x = x + h * (first + 3 * third) / 4

    def denoise(x_t, t, cond=None):
        v = jnp.sin(x_t) + t
        return dj.Estimates(x_t - t * v, x_t + (1 - t) * v)

    with jax.enable_x64(True):
        ours = samplers.heun3(denoise, jnp.array([[0.3], [-1.2]]), grid=grid).x_0
    np.testing.assert_allclose(ours, x, rtol=1e-12)


def test_heun3_refuses_a_first_stage_near_two_thirds():
    grid = grids.from_times(FLOW, np.array([0.9, 0.2, 0.1]))
    with pytest.raises(ValueError, match=r"before 0\.6 of its step .* point 1 is at 0\.7778"):
        samplers.heun3(gaussian_denoiser(FLOW), jnp.ones((2, 3)), grid=grid)
