"""Few-step samplers on Gaussian data, whose flow map and consistency function are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import flow_maps, grids, schedules
from diffjax.parametrisations import Estimates
from diffjax.process import broadcast, scales_like
from diffjax.sampling import samplers

MEAN, STD = 0.3, 0.5
FLOW = schedules.rectified_flow()
COSINE = schedules.cosine(100)


def exact_jump(x_t, t, s, cond=None):
    t, s = (broadcast(time, x_t) for time in (t, s))
    std_t, std_s = (jnp.hypot((1 - time) * STD, time) for time in (t, s))
    return (1 - s) * MEAN + std_s / std_t * (x_t - (1 - t) * MEAN)


def end_of_path(schedule):
    def denoise(x_t, t, cond=None):
        signal, noise = scales_like(schedule, t, x_t)
        x_0 = MEAN + STD / jnp.hypot(signal * STD, noise) * (x_t - signal * MEAN)
        return Estimates(x_0, (x_t - signal * x_0) / noise)

    return denoise


def posterior_mean(schedule):
    def denoise(x_t, t, cond=None):
        signal, noise = scales_like(schedule, t, x_t)
        power = (signal * STD) ** 2 + noise**2
        x_0 = MEAN + signal * STD**2 * (x_t - signal * MEAN) / power
        return Estimates(x_0, noise * (x_t - signal * MEAN) / power)

    return denoise


def test_an_exact_flow_map_needs_one_step_and_is_none_the_worse_for_more():
    x_T = jax.random.normal(jax.random.key(0), (200, 3))
    for steps in (1, 2, 7):
        grid = grids.trailing(FLOW, steps)
        found = samplers.flow_map(exact_jump, x_T, grid=grid, keep_trajectory=True)
        np.testing.assert_allclose(found.x_0, MEAN + STD * x_T, rtol=1e-5, atol=1e-5)
        assert found.trajectory.shape == (steps + 1, 200, 3)


@pytest.mark.parametrize("schedule", [FLOW, COSINE], ids=["flow", "cosine"])
def test_a_denoisers_flow_map_is_ddim(schedule):
    x_T = jax.random.normal(jax.random.key(0), (20, 3))
    grid, denoise = grids.trailing(schedule, 5), posterior_mean(schedule)
    jump = flow_maps.ddim_map(denoise, schedule)
    np.testing.assert_allclose(
        samplers.flow_map(jump, x_T, grid=grid).x_0,
        samplers.ddim(denoise, x_T, grid=grid).x_0,
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("schedule", [FLOW, COSINE], ids=["flow", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_an_exact_consistency_function_gives_the_data_in_any_number_of_steps(schedule, steps):
    count = 40_000
    x_T = jax.random.normal(jax.random.key(0), (count, 1))
    x_0 = samplers.consistency(
        end_of_path(schedule), x_T, grid=grids.trailing(schedule, steps), key=jax.random.key(1)
    ).x_0
    # Four standard errors of a mean and of a standard deviation.
    assert abs(float(x_0.mean()) - MEAN) < 4 * STD / np.sqrt(count)
    assert abs(float(x_0.std()) - STD) < 4 * STD / np.sqrt(2 * count)


def test_every_consistency_step_draws_new_noise_of_its_own_for_each_example():
    def zero(x_t, t, cond=None):
        return Estimates(jnp.zeros_like(x_t), x_t)

    grid = grids.trailing(FLOW, 3)
    path = samplers.consistency(
        zero, jnp.ones((500, 2)), grid=grid, key=jax.random.key(0), keep_trajectory=True
    ).trajectory
    noise = np.asarray(path[1:-1]) / grid.noise_scale[1:-1, None, None]
    # Two steps of two numbers an example: four columns of 500, whose correlations are 0 +- 0.045.
    columns = np.concatenate(list(noise), axis=1)
    np.testing.assert_allclose(np.corrcoef(columns.T), np.eye(4), atol=0.2)
    np.testing.assert_allclose(columns.std(0), 1, atol=0.15)


def test_several_consistency_steps_need_a_key():
    x_T = jnp.zeros((2, 1))
    one = samplers.consistency(end_of_path(FLOW), x_T, grid=grids.trailing(FLOW, 1))
    np.testing.assert_allclose(one.x_0, MEAN, rtol=1e-5)
    with pytest.raises(ValueError, match="consistency with more than one step draws noise"):
        samplers.consistency(end_of_path(FLOW), x_T, grid=grids.trailing(FLOW, 2))


def network(x, times, cond):
    """Of average velocities, with a value for every input."""
    time, span = (broadcast(times[:, i], x) for i in (0, 1))
    return jnp.sin(x) + time - 2 * span


def test_a_networks_flow_map_goes_by_its_average_velocity():
    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    jump = flow_maps.average_velocity_map(network, FLOW)
    expected = x_t - 0.5 * (jnp.sin(x_t) + 0.8 - 2 * 0.5)
    np.testing.assert_allclose(jump(x_t, 0.8, 0.3), expected, rtol=1e-5)
    np.testing.assert_allclose(jump(x_t, 0.8, 0.8), x_t)
    prediction = dj.Prediction(FLOW, dj.parametrisations.average_velocity, dj.denoisers.unit_time)
    np.testing.assert_allclose(prediction.flow_map(network)(x_t, 0.8, 0.3), expected, rtol=1e-5)


def test_a_flow_maps_limit_is_its_denoisers_ode():
    prediction = dj.Prediction(FLOW, dj.parametrisations.average_velocity, dj.denoisers.unit_time)
    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    jump, denoise = prediction.flow_map(network), prediction.denoiser(network)
    pair = denoise(x_t, 0.6)
    np.testing.assert_allclose(
        (x_t - jump(x_t, 0.6, 0.5999)) / 1e-4, pair.eps - pair.x_0, atol=5e-3
    )


def test_other_parametrisations_have_ddims_flow_map():
    prediction = dj.Prediction(COSINE, dj.parametrisations.eps)

    def network(x, times, cond):
        return 0.5 * x

    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    pair = prediction.denoiser(network)(x_t, 40)
    signal, noise = (float(scale) for scale in COSINE(np.array(20)))
    np.testing.assert_allclose(
        prediction.flow_map(network)(x_t, 40, 20), signal * pair.x_0 + noise * pair.eps, rtol=1e-5
    )


def test_a_network_of_images_points_from_x_t_to_them():
    """x_s is on the line from x_t to the network's image, (t - s) / t of the way."""
    images = dj.Prediction(FLOW, dj.parametrisations.average_x0(), dj.denoisers.unit_time)
    x_t = jax.random.normal(jax.random.key(0), (4, 2))

    def network(x, times, cond):
        return jnp.full_like(x, 0.25)

    jump, denoise = images.flow_map(network), images.denoiser(network)
    np.testing.assert_allclose(jump(x_t, 0.8, 0.2), x_t + 0.75 * (0.25 - x_t), rtol=1e-5)
    np.testing.assert_allclose(jump(x_t, 0.8, 0.0), 0.25, rtol=1e-5)
    np.testing.assert_allclose(denoise(x_t, 0.8).x_0, 0.25, rtol=1e-5)
    # Below least_time the step is cut.
    np.testing.assert_allclose(jump(x_t, 0.025, 0.0), (x_t + 0.25) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="least_time must be in"):
        dj.parametrisations.average_x0(least_time=0.0)
