"""Editing on Gaussian data, whose posteriors are known in closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import editing, grids, process, samplers, schedules

SCHEDULE = schedules.linear_beta(1000)
KEY = jax.random.key(0)
# Correlated pixels: what is known of one says something of the other.
COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 1.0, 0.5], [0.3, 0.5, 1.0]])
MEAN = np.array([0.2, -0.3, 0.5])


def gaussian_denoiser(covariance=COVARIANCE, mean=MEAN):
    """E[x_0 | x_t] of N(mean, covariance) data, x_t (B, 3)."""

    def denoise(x_t, t, cond=None):
        signal, noise = (
            jnp.asarray(s).reshape(-1)[0] for s in process.scales_like(SCHEDULE, t, x_t)
        )
        joint = signal**2 * covariance + noise**2 * jnp.eye(3)
        centred = jnp.linalg.solve(joint, (x_t - signal * mean).T).T
        return dj.Estimates(mean + signal * centred @ covariance, noise * centred)

    return denoise


def posterior(known, index):
    """Mean and covariance of the rest, given x_0[index] = known."""
    rest = [i for i in range(3) if i != index]
    gain = COVARIANCE[rest, index] / COVARIANCE[index, index]
    mean = MEAN[rest] + gain * (known - MEAN[index])
    return rest, mean, COVARIANCE[np.ix_(rest, rest)] - np.outer(gain, COVARIANCE[index, rest])


KNOWN = jnp.array([0.0, 1.4, 0.0])
MASK = jnp.array([0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    "name", ["ddim", "heun", "dpm_solver_pp_2m", "unipc", "ancestral", "lms", "dpm_solver_2"]
)
def test_the_known_region_comes_back_to_the_bit_from_every_sampler(name):
    n = 50
    known = jnp.tile(KNOWN, (n, 1))
    denoise = editing.known_region(gaussian_denoiser(), SCHEDULE, known=known, mask=MASK)
    grid = grids.trailing(SCHEDULE, 20)
    x_T = jax.random.normal(KEY, (n, 3))
    x = getattr(samplers, name)(denoise, x_T, grid=grid, key=KEY).x_0
    if name == "lms":
        np.testing.assert_allclose(x[:, 1], known[:, 1], atol=1e-4)
    else:
        np.testing.assert_array_equal(x[:, 1], known[:, 1])
    rest, mean, _ = posterior(1.4, 1)
    # Replacement is not exact, but it leans the right way.
    assert abs(float(x[:, rest[0]].mean()) - mean[0]) < abs(MEAN[0] - mean[0])


def paper_times(steps, jump, resamples):
    """Appendix B of Lugmayr et al. 2022 in its own words: times from T - 1 down to -1 (x_0)."""
    jumps = dict.fromkeys(range(0, steps - jump, jump), resamples - 1)
    t, ts = steps, []
    while t >= 1:
        t -= 1
        ts.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump):
                t += 1
                ts.append(t)
    return [*ts, -1]


def test_repaint_path_by_hand():
    # 7 steps, jumps of 3, twice each: from the points 6 and 3, counted from the end. The second
    # coming to 3, from 6's jump, has no jump left.
    assert editing.repaint_path(7, jump=3, resamples=2) == [
        0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7
    ]  # fmt: skip
    # Three times each; a rest at the noisy end, of which no jump begins: point 1 is too near.
    assert editing.repaint_path(4, jump=2, resamples=3) == [0, 1, 2, 3, 1, 2, 3, 1, 2, 3, 4]
    assert editing.repaint_path(3, jump=5, resamples=1) == [0, 1, 2, 3]


@pytest.mark.parametrize(("steps", "jump", "resamples"), [(250, 10, 10), (250, 10, 1), (23, 4, 3)])
def test_repaint_path_is_appendix_b(steps, jump, resamples):
    """Their single steps back are one of ours."""
    single = []
    for point in editing.repaint_path(steps, jump=jump, resamples=resamples):
        if single and point < single[-1]:
            single += range(single[-1] - 1, point, -1)
        single.append(point)
    assert [steps - 1 - point for point in single] == paper_times(steps, jump, resamples)


def test_repaint_visits_the_path():
    grid = grids.trailing(SCHEDULE, 7)
    seen = []

    def watched(x_t, t, cond=None):
        jax.debug.callback(lambda t: seen.append(int(t)), t)
        return gaussian_denoiser()(x_t, t)

    x = jnp.zeros((2, 3))
    path = editing.repaint(watched, x, grid=grid, key=KEY, known=x, mask=MASK, jump=3,
                           resamples=2, keep_trajectory=True).trajectory  # fmt: skip
    jax.effects_barrier()
    points = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7]
    asked = [a for a, b in itertools.pairwise(points) if b > a]
    assert seen == grid.t[asked].tolist()
    assert len(path) == len(points)


@pytest.mark.slow
def test_repaint_nears_the_posterior_and_keeps_what_is_known():
    n = 3000
    known, x_T = jnp.tile(KNOWN, (n, 1)), jax.random.normal(KEY, (n, 3))
    rest, mean, covariance = posterior(1.4, 1)

    def error(resamples):
        x = editing.repaint(
            gaussian_denoiser(), x_T, grid=grids.trailing(SCHEDULE, 100), key=jax.random.key(1),
            known=known, mask=MASK, jump=5, resamples=resamples,
        ).x_0  # fmt: skip
        np.testing.assert_array_equal(x[:, 1], known[:, 1])
        x = np.asarray(x)[:, rest]
        return np.abs(x.mean(0) - mean).max() + np.abs(np.cov(x.T) - covariance).max()

    once, often = error(1), error(10)
    assert often < 0.2
    assert often < 0.5 * once


def test_image_to_image_keeps_more_of_the_image_the_weaker_it_is():
    grid = grids.trailing(SCHEDULE, 50)
    x_0, eps = jax.random.normal(KEY, (2, 400, 3))
    denoise = gaussian_denoiser(np.eye(3), np.zeros(3))
    distances = []
    for strength in (0.02, 0.3, 0.6, 1.0):
        x = editing.image_to_image(
            samplers.ddim, denoise, x_0, grid=grid, strength=strength, eps=eps
        ).x_0
        distances.append(float(jnp.abs(x - x_0).mean()))
    assert np.all(np.diff(distances) > 0) and distances[0] < 0.1
    whole = samplers.ddim(
        denoise, SCHEDULE(1000).signal_scale * x_0 + SCHEDULE(1000).noise_scale * eps, grid=grid
    ).x_0
    np.testing.assert_allclose(x, whole, atol=1e-4)


def test_slerp_keeps_the_length_and_the_ends():
    a, b = jax.random.normal(KEY, (2, 5, 8, 8, 1))
    weights = jnp.linspace(0, 1, 5)
    path = editing.slerp(a, b, weights)
    np.testing.assert_allclose(path[0], a[0], atol=1e-5)
    np.testing.assert_allclose(path[-1], b[-1], atol=1e-5)
    length = lambda x: np.sqrt(np.square(x).sum((1, 2, 3)))  # noqa: E731
    low, high = np.minimum(length(a), length(b)), np.maximum(length(a), length(b))
    assert np.all(length(path) > 0.97 * low) and np.all(length(path) < 1.03 * high)
    # Equal steps on the way are equal angles.
    unit = lambda x: x / length(x).reshape(-1, 1, 1, 1)  # noqa: E731
    one = editing.slerp(unit(a)[:1], unit(b)[:1], 0.25)
    two = editing.slerp(unit(a)[:1], unit(b)[:1], 0.5)
    np.testing.assert_allclose((one * two).sum(), (one * unit(a)[:1]).sum(), rtol=1e-4)
    np.testing.assert_allclose(editing.slerp(a, a, 0.3), a, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (8, 8, 3), (3, 8, 8, 1), (4,)])
def test_a_mask_of_the_wrong_shape_is_refused(shape):
    known = jnp.zeros((2, 8, 8, 1))
    if shape == (2, 8, 8, 1):
        editing.known_region(gaussian_denoiser(), SCHEDULE, known=known, mask=jnp.ones(shape))
        return
    with pytest.raises(ValueError, match="mask's shape"):
        editing.known_region(gaussian_denoiser(), SCHEDULE, known=known, mask=jnp.ones(shape))
    with pytest.raises(ValueError, match="mask's shape"):
        editing.repaint(gaussian_denoiser(), known, grid=grids.trailing(SCHEDULE, 3), key=KEY,
                        known=known, mask=jnp.ones(shape))  # fmt: skip


def test_what_else_is_refused():
    grid, x = grids.trailing(SCHEDULE, 4), jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="strength"):
        editing.image_to_image(
            samplers.ddim, gaussian_denoiser(), x, grid=grid, strength=0.0, eps=x
        )
    with pytest.raises(ValueError, match="resamples"):
        editing.repaint(gaussian_denoiser(), x, grid=grid, key=KEY, known=x, mask=MASK, resamples=0)
    with pytest.raises(ValueError, match="a grid of 4 steps has no jump of 10: take more steps"):
        editing.repaint(gaussian_denoiser(), x, grid=grid, key=KEY, known=x, mask=MASK)
    with pytest.raises(ValueError, match="key"):
        editing.repaint(gaussian_denoiser(), x, grid=grid, known=x, mask=MASK)
