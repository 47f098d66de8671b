"""Samplers that look at the present alone, against their papers and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, samplers, schedules
from diffjax import parametrisations as p
from tests.sampling.samplers.known import KEY, MEAN, gaussian_denoiser, ode_solution


def test_ancestral_is_exact_for_data_that_is_one_point():
    # The posterior at the true x_0 is then the reverse step itself, for any number of steps.
    schedule, n = schedules.linear_beta(100), 50_000
    denoise = gaussian_denoiser(schedule, std=0.0)
    grid = grids.from_times(schedule, np.array([100, 60, 20]))
    x_T = MEAN * grid.signal_scale[0] + grid.noise_scale[0] * jax.random.normal(KEY, (n, 1))
    path = samplers.ancestral(denoise, x_T, grid=grid, key=jax.random.key(9), keep_trajectory=True)
    path = np.asarray(path.trajectory)
    for i in range(4):
        std = grid.noise_scale[i]
        assert abs(path[i].mean() - grid.signal_scale[i] * MEAN) <= 4 * std / np.sqrt(n) + 1e-6
        assert abs(path[i].std() - std) <= 4 * std / np.sqrt(2 * n) + 1e-6


@pytest.mark.parametrize(
    "schedule",
    [schedules.linear_beta(1000), schedules.karras(), schedules.rectified_flow(),
     schedules.zero_terminal_snr(schedules.cosine(1000))],
    ids=["vp", "edm", "flow", "zero snr"],
)  # fmt: skip
def test_ddim_with_eta_1_is_ancestral_sampling_noise_for_noise(schedule):
    grid = grids.trailing(schedule, 10)
    x_T = jax.random.normal(KEY, (3, 4)) * grid.noise_scale[0]
    run = functools.partial(gaussian_denoiser(schedule))
    a = samplers.ancestral(run, x_T, grid=grid, key=KEY, keep_trajectory=True).trajectory
    b = samplers.ddim(run, x_T, grid=grid, key=KEY, eta=1.0, keep_trajectory=True).trajectory
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_ddim_with_eta_between_keeps_the_marginals_step_by_step():
    # For one-point data each step has a known law: DDIM's family shares it for every eta.
    schedule, n = schedules.cosine(100), 50_000
    denoise = gaussian_denoiser(schedule, std=0.0)
    grid = grids.from_times(schedule, np.array([90, 50, 10]))
    x_T = MEAN * grid.signal_scale[0] + grid.noise_scale[0] * jax.random.normal(KEY, (n, 1))
    path = samplers.ddim(
        denoise, x_T, grid=grid, key=jax.random.key(2), eta=0.6, keep_trajectory=True
    ).trajectory
    for i in range(3):
        std = grid.noise_scale[i]
        assert abs(float(path[i].std()) - std) < 4 * std / np.sqrt(2 * n)


def test_noise_differs_from_step_to_step():
    schedule = schedules.linear_beta(50)
    zero = lambda x, t, cond=None: dj.Estimates(jnp.zeros_like(x), jnp.zeros_like(x))  # noqa: E731
    grid = grids.trailing(schedule, 5)
    path = samplers.ddim(
        zero, jnp.zeros((1, 1000)), grid=grid, key=KEY, eta=1.0, keep_trajectory=True
    ).trajectory[1:-1, 0]
    correlation = np.corrcoef(path)
    # With x_0 = eps = 0 each x_s is its own noise: five standard errors of a correlation of 0.
    assert np.abs(correlation - np.eye(4)).max() < 5 / np.sqrt(1000)


@pytest.mark.parametrize(
    "schedule",
    [schedules.linear_beta(1000), schedules.karras(), schedules.rectified_flow(),
     schedules.zero_terminal_snr(schedules.cosine(1000))],
    ids=["vp", "edm", "flow", "zero snr"],
)  # fmt: skip
def test_euler_is_ddim(schedule):
    grid = grids.trailing(schedule, 7)
    x_T = jax.random.normal(KEY, (3, 4)) * grid.noise_scale[0]
    network = lambda x, t, cond: jnp.tanh(x)  # noqa: E731, a network that is far from exact
    denoise = dj.denoiser(network, schedule, parametrisation=p.v)
    a = samplers.ddim(denoise, x_T, grid=grid).x_0
    np.testing.assert_allclose(samplers.euler(denoise, x_T, grid=grid).x_0, a, rtol=2e-4, atol=2e-4)


def test_heun_is_edms_algorithm_1_on_its_schedule():
    """Algorithm 1 of Karras et al. 2022 without churn, in float64 on scalars."""
    schedule = schedules.karras()
    grid = grids.karras(schedule, 6)
    D = lambda x, sigma: np.tanh(x / (1 + sigma))  # noqa: E731, any denoiser
    x = np.array([[30.0], [-80.0]])
    for sigma, after in zip(grid.noise_scale[:-1], grid.noise_scale[1:], strict=True):
        d = (x - D(x, sigma)) / sigma
        euler = x + (after - sigma) * d
        if after > 0:
            d = (d + (euler - D(euler, after)) / after) / 2
        x = x + (after - sigma) * d

    def denoise(x_t, t, cond=None):
        sigma = schedule(jnp.asarray(t)).noise_scale
        x_0 = jnp.tanh(x_t / (1 + sigma))
        return dj.Estimates(x_0, (x_t - x_0) / sigma)

    with jax.enable_x64(True):
        ours = samplers.heun(denoise, jnp.array([[30.0], [-80.0]]), grid=grid).x_0
    np.testing.assert_allclose(ours, x, rtol=1e-9)


def test_heun_is_heuns_method_on_the_velocity_of_a_flow():
    schedule = schedules.rectified_flow()
    grid = grids.trailing(schedule, 5)
    velocity = lambda x, t: np.sin(x) + t  # noqa: E731
    x = np.array([[0.3], [-1.2]])
    for t, s in zip(grid.t[:-1], grid.t[1:], strict=True):
        here = velocity(x, t)
        euler = x + (s - t) * here
        x = x + (s - t) * ((here + velocity(euler, s)) / 2 if s > 0 else here)

    network = lambda x, t, cond: jnp.sin(x) + t[:, None] / 1000  # noqa: E731
    with jax.enable_x64(True):
        denoise = dj.denoiser(network, schedule, parametrisation=p.velocity)
        ours = samplers.heun(denoise, jnp.array([[0.3], [-1.2]]), grid=grid).x_0
    np.testing.assert_allclose(ours, x, rtol=1e-6)  # the network's time is float32


def test_heuns_last_step_in_full_and_what_a_plain_one_costs():
    flow = schedules.rectified_flow()
    asked = []

    def counted(x_t, t, cond=None):
        jax.debug.callback(lambda t: asked.append(float(t)), t)
        return gaussian_denoiser(flow)(x_t, t)

    with jax.enable_x64(True):
        x_T = jnp.array([[-1.5], [0.2], [2.0]])
        exact = ode_solution(np.asarray(x_T), (0.0, 1.0))
        errors = {
            last: np.array([
                np.abs(np.asarray(samplers.heun(
                    counted, x_T, grid=grids.trailing(flow, steps), last=last
                ).x_0) - exact).max()
                for steps in (10, 20, 40)
            ])
            for last in ("plain", "full")
        }  # fmt: skip
    jax.effects_barrier()
    assert len(asked) == (20 + 40 + 80) + (19 + 39 + 79) and asked.count(0.0) == 3
    for of_one in errors.values():
        np.testing.assert_allclose(np.log2(of_one[:-1] / of_one[1:]), 2, atol=0.4)
    assert np.all(errors["full"] < 0.35 * errors["plain"])


def test_heuns_last_step_in_full_needs_eps_at_clean_data():
    grid, x_T = grids.trailing(schedules.rectified_flow(), 4), jnp.ones((2, 3))
    network = lambda x, t, cond: 0.1 * x  # noqa: E731
    for parametrisation, known in ((p.eps, True), (p.v, True), (p.velocity, True), (p.x0, False)):
        denoise = dj.denoiser(network, schedules.rectified_flow(), parametrisation=parametrisation)
        # From eps no x_0 can be had at pure noise: without the first time.
        some = grids.Grid(*(column[1:] for column in grid))
        x_0 = samplers.heun(denoise, x_T, grid=some, last="full").x_0
        assert np.isfinite(x_0).all() == known, parametrisation.name


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (samplers.ancestral, {}, "ancestral draws noise: pass key="),
        (samplers.ancestral, {"key": KEY, "variance": "big"}, "'learned', not 'big'"),
        (samplers.ddim, {"eta": 0.5}, "ddim with eta > 0 draws noise"),
        (samplers.ddim, {"eta": 1.5}, r"eta must be in \[0, 1\], not 1.5"),
        (samplers.ddim, {"eta": -0.1, "key": KEY}, r"eta must be in \[0, 1\]"),
        (samplers.heun, {"last": "half"}, "last must be 'plain' or 'full', not 'half'"),
        (samplers.ancestral, {"key": jax.random.split(KEY, 3)}, r"one such key an example, \(2,\)"),
        (samplers.ancestral, {"key": jax.random.PRNGKey(0)}, "array of uint32"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_calls_are_refused(sampler, options, message):
    schedule = schedules.cosine(10)
    with pytest.raises(ValueError, match=message):
        sampler(
            gaussian_denoiser(schedule),
            jnp.ones((2, 1)),
            grid=grids.trailing(schedule, 2),
            **options,
        )
