"""The sampler that chooses its own steps: error, grid, trajectory, and giving up."""

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


def test_adaptive_errs_less_with_a_smaller_tolerance():
    schedule = schedules.continuous_cosine()
    with jax.enable_x64(True):
        x_T = jnp.array([[-1.0], [0.4], [2.0]])
        exact = middle_solution(schedule, x_T)
        errors = [
            np.abs(np.asarray(samplers.adaptive(
                gaussian_denoiser(schedule), x_T, grid=middle(schedule, 2), schedule=schedule,
                rtol=tolerance, atol=tolerance,
            ).x_0) - exact).max()
            for tolerance in (1e-2, 1e-4, 1e-6)
        ]  # fmt: skip
    assert errors[0] < 1e-2 and errors[1] < 1e-4 and errors[2] < 1e-5
    assert np.all(np.diff(errors) < 0)


@pytest.mark.parametrize("steps", [2, 3, 4, 7, 200])
def test_adaptive_reaches_clean_data(steps):
    # The step to clean data is a plain one: short here, whatever the steps before it.
    x_T = jnp.array([[-1.5], [0.2], [1.0]])
    exact = ode_solution(np.asarray(x_T), (0.0, 1.0))
    grid = grids.from_times(FLOW, np.linspace(1.0, 0.005, steps))
    x = samplers.adaptive(gaussian_denoiser(FLOW), x_T, grid=grid, schedule=FLOW, rtol=1e-4,
                          atol=1e-4).x_0  # fmt: skip
    np.testing.assert_allclose(x, exact, atol=5e-3)


@pytest.mark.parametrize(
    "schedule",
    [schedules.linear_beta(1000), schedules.cosine(1000), schedules.karras(), FLOW],
    ids=["linear", "cosine", "edm", "flow"],
)
def test_every_time_of_the_grid_is_visited_within_the_tolerance(schedule):
    grid = grids.trailing(schedule, 6)
    x_T = jnp.array([[-1.5], [0.2], [1.0]]) * grid.noise_scale[0]
    path = samplers.adaptive(gaussian_denoiser(schedule), x_T, grid=grid, schedule=schedule,
                             rtol=1e-4, atol=1e-4, keep_trajectory=True)  # fmt: skip
    assert path.trajectory.shape == (7, 3, 1)
    x_0 = ode_solution(np.asarray(x_T), (grid.signal_scale[0], grid.noise_scale[0]))
    for i in range(6):
        there = ode_solution(np.asarray(path.trajectory[i]),
                             (grid.signal_scale[i], grid.noise_scale[i]))  # fmt: skip
        np.testing.assert_allclose(there, x_0, atol=2e-3)
    last = gaussian_denoiser(schedule)(path.trajectory[-2], grid.t[-2]).x_0
    np.testing.assert_allclose(path.x_0, last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
def test_few_times_are_enough(steps):
    for schedule in (FLOW, schedules.karras(), schedules.zero_terminal_snr(schedules.cosine(10))):
        grid = grids.trailing(schedule, steps)
        x_T = jnp.ones((2, 3)) * grid.noise_scale[0]
        x = samplers.adaptive(gaussian_denoiser(schedule), x_T, grid=grid, schedule=schedule).x_0
        assert np.isfinite(x).all()


def test_tries_are_counted_over_the_whole_way():
    grid = grids.trailing(FLOW, 8)
    calls = []

    def counted(x_t, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return gaussian_denoiser(FLOW)(x_t, t)

    def sample(max_steps, keep_trajectory=False):
        return samplers.adaptive(counted, jnp.ones((2, 3)), grid=grid, schedule=FLOW, rtol=1e-4,
                                 atol=1e-4, max_steps=max_steps,
                                 keep_trajectory=keep_trajectory)  # fmt: skip

    assert np.isfinite(sample(1000).x_0).all()
    jax.effects_barrier()
    tries, rest = divmod(len(calls) - 1, 3)
    assert rest == 0 and tries >= 7
    assert np.isfinite(sample(tries).x_0).all()
    given_up = sample(tries - 1, keep_trajectory=True)
    assert np.isnan(given_up.x_0).all()
    finite = np.isfinite(given_up.trajectory).all((1, 2))
    assert finite[:7].all() and not finite[7:].any()


def test_times_between_the_grids_stay_between_them():
    seen = []

    def watched(x_t, t, cond=None):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return gaussian_denoiser(FLOW)(x_t, t)

    grid = grids.from_times(FLOW, np.array([0.9, 0.4]))
    samplers.adaptive(watched, jnp.ones((2, 3)), grid=grid, schedule=FLOW)
    jax.effects_barrier()
    assert min(seen) == np.float32(0.4) and max(seen) == np.float32(0.9)


@pytest.mark.parametrize("option", ["rtol", "atol"])
def test_adaptive_refuses_a_tolerance_that_is_not_positive(option):
    with pytest.raises(ValueError, match="positive"):
        samplers.adaptive(gaussian_denoiser(FLOW), jnp.ones((2, 3)), grid=grids.trailing(FLOW, 6),
                          schedule=FLOW, **{option: 0.0})  # fmt: skip


def test_known_pixels_come_back_to_the_bit():
    grid, known = grids.trailing(FLOW, 5), jnp.linspace(-1, 1, 6).reshape(2, 3)
    inpaint = dj.editing.known_region(
        gaussian_denoiser(FLOW), FLOW, known=known, mask=jnp.ones((2, 3))
    )
    x = samplers.adaptive(inpaint, jnp.ones((2, 3)), grid=grid, schedule=FLOW).x_0
    np.testing.assert_array_equal(x, known)
