"""Runge and Kutta's method on flows."""

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
