"""PNDM and PLMS: against diffusers, the published loop, and their order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, samplers, schedules
from tests.sampling.samplers.known import (
    FLOW,
    SCHEDULES,
    gaussian_denoiser,
    middle,
    middle_solution,
)


def test_plms_is_the_published_loop():
    """Liu et al. 2022 as latent diffusion runs it, step by step in NumPy, on rho."""
    schedule = schedules.karras()
    grid = grids.karras(schedule, 8)
    rho = grid.noise_scale
    eps_at = lambda x, sigma: (x - np.tanh(x / (1 + sigma))) / sigma  # noqa: E731
    x, old = np.array([[3.0], [-8.0]]), []
    for i in range(8):
        eps = eps_at(x, rho[i])
        if i == 0:
            guess = x + (rho[1] - rho[0]) * eps
            mean = (eps + eps_at(guess, rho[1])) / 2
        elif i == 1:
            mean = (3 * eps - old[-1]) / 2
        elif i == 2:
            mean = (23 * eps - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            mean = (55 * eps - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        old.append(eps)
        x = x + (rho[i + 1] - rho[i]) * mean

    def denoise(x_t, t, cond=None):
        sigma = schedule(jnp.asarray(t)).noise_scale
        x_0 = jnp.tanh(x_t / (1 + sigma))
        return dj.Estimates(x_0, (x_t - x_0) / sigma)

    with jax.enable_x64(True):
        ours = samplers.plms(denoise, jnp.array([[3.0], [-8.0]]), grid=grid).x_0
    np.testing.assert_allclose(ours, x, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_plms_from_pure_noise_and_in_few_steps(steps):
    for schedule in (FLOW, schedules.linear_beta(1000)):
        grid = grids.trailing(schedule, steps)
        x = samplers.plms(gaussian_denoiser(schedule), jnp.ones((2, 3)), grid=grid).x_0
        assert np.isfinite(x).all() and np.abs(x).max() < 3


def on_the_grid_of_diffusers(schedule, steps, *, skip_prk_steps):
    """(diffusers' result, the grid it took, x_T) for eps = tanh(x)."""
    diffusers = pytest.importorskip("diffusers", reason="a second implementation of PNDM")
    torch = pytest.importorskip("torch", reason="diffusers needs torch")
    theirs = diffusers.PNDMScheduler(1000, skip_prk_steps=skip_prk_steps)
    theirs.alphas_cumprod = torch.tensor(schedule.alpha_bar[1:])
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(steps)
    x_T = np.array([[1.3, -0.7], [0.2, -2.0]])
    x = torch.tensor(x_T)
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(x), t, x).prev_sample
    return x.numpy(), grids.from_times(schedule, theirs._timesteps[::-1] + 1), x_T


@pytest.mark.parametrize("steps", [4, 10, 20, 50])
@pytest.mark.parametrize("name", ["plms", "pndm"])
def test_diffusers_has_the_same_numbers(name, steps):
    schedule = schedules.linear_beta(1000)
    theirs, grid, x_T = on_the_grid_of_diffusers(schedule, steps, skip_prk_steps=name == "plms")

    def denoise(x_t, t, cond=None):
        signal, noise = schedule(t)
        eps = jnp.tanh(x_t)
        return dj.Estimates((x_t - noise * eps) / signal, eps)

    sampler = {"plms": samplers.plms, "pndm": functools.partial(samplers.pndm, schedule=schedule)}
    with jax.enable_x64(True):
        ours = sampler[name](denoise, jnp.array(x_T), grid=grid).x_0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["plms", "pndm"])
def test_observed_order(name, schedule):
    sampler = {"plms": samplers.plms, "pndm": functools.partial(samplers.pndm, schedule=schedule)}
    with jax.enable_x64(True):
        x_T = jnp.array([[-1.0], [0.4], [2.0]]) * float(schedule(0.9).noise_scale)
        exact = middle_solution(schedule, x_T)
        errors = [
            np.abs(np.asarray(sampler[name](
                gaussian_denoiser(schedule), x_T, grid=middle(schedule, steps)
            ).x_0) - exact).max()
            for steps in (132, 264, 528)
        ]  # fmt: skip
    # The multistep weights know nothing of how rho bends, as in `ipndm`.
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 2, atol=0.2)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
def test_pndm_from_pure_noise_and_in_few_steps(steps):
    for schedule in (FLOW, schedules.linear_beta(1000), schedules.cosine(1000)):
        grid = grids.trailing(schedule, steps)
        path = samplers.pndm(gaussian_denoiser(schedule), jnp.ones((2, 3)), grid=grid,
                             schedule=schedule, keep_trajectory=True)  # fmt: skip
        assert np.isfinite(path.trajectory).all()
        assert np.abs(path.x_0).max() < (3 if steps > 2 else 10)
        # The first three steps have three points more, but not from pure noise or to clean data.
        from_noise = grid.signal_scale[0] < 1e-3
        runge_kutta = max(0, min(3, steps - 1) - from_noise)
        assert len(path.trajectory) == steps + 1 + 3 * runge_kutta


def test_midpoints_lie_in_t_and_are_whole_where_they_can_be():
    schedule = schedules.linear_beta(1000)
    for times, kind in (([900, 700, 500, 300], "i"), ([900, 701, 500, 300], "f")):
        seen = []

        def watched(x_t, t, cond=None, seen=seen):
            jax.debug.callback(lambda t: seen.append(t), t)
            return gaussian_denoiser(schedule)(x_t, t)

        grid = grids.from_times(schedule, np.array(times))
        samplers.pndm(watched, jnp.ones((2, 3)), grid=grid, schedule=schedule)
        jax.effects_barrier()
        a, b = times[:2]
        np.testing.assert_array_equal(seen[:5], [a, (a + b) / 2, (a + b) / 2, b, b])
        assert all(t.dtype.kind == kind for t in seen)
        assert len(seen) == 4 + 9


def test_the_first_step_is_runge_and_kuttas_on_eps():
    """With eps = f(t) and signal = 1 it is Simpson's rule in t, over dnoise."""
    schedule = schedules.karras()
    grid = grids.stop_before_clean(grids.from_times(schedule, np.array([0.8, 0.5])))

    def denoise(x_t, t, cond=None):
        eps = jnp.cos(jnp.asarray(t, x_t.dtype))
        return dj.Estimates(
            x_t - schedule(jnp.asarray(t)).noise_scale * eps, eps * jnp.ones_like(x_t)
        )

    with jax.enable_x64(True):
        x = samplers.pndm(denoise, jnp.zeros((1, 1)), grid=grid, schedule=schedule).x_0
    mean = (np.cos(0.8) + 4 * np.cos(0.65) + np.cos(0.5)) / 6
    np.testing.assert_allclose(x, [np.diff(grid.noise_scale) * mean], rtol=1e-12)
