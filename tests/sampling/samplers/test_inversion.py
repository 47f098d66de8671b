"""From data back to noise."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, samplers, schedules
from tests.sampling.samplers.known import FLOW, gaussian_denoiser, mixture_denoiser


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


def test_inversion_refuses_a_grid_from_pure_noise():
    with pytest.raises(ValueError, match="pure noise"):
        samplers.ddim_inversion(
            gaussian_denoiser(FLOW), jnp.ones((2, 3)), grid=grids.trailing(FLOW, 6)
        )
