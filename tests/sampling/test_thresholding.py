"""Thresholding: what it changes, and that x_0 and eps stay a pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import process, samplers, schedules, thresholding

SCHEDULE = schedules.linear_beta(100)
WRAPPERS = {
    "clip": dj.clip_x0,
    "clip to half": lambda d, s: dj.clip_x0(d, s, low=-0.5, high=0.5),
    "dynamic": dj.dynamic_threshold,
    "dynamic, 80": lambda d, s: dj.dynamic_threshold(d, s, percentile=80.0),
    "dynamic, capped": lambda d, s: dj.dynamic_threshold(d, s, cap=1.5),
    "map": lambda d, s: thresholding.map_x0(d, s, jnp.tanh),
}


def denoiser_that_says(x_0):
    def denoise(x_t, t, cond=None):
        return dj.Estimates(x_0, dj.parametrisations.eps_from_x0(
            x_t, x_0, process.scales_like(SCHEDULE, t, x_t)))  # fmt: skip

    return denoise


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("t", [30, jnp.array([1, 50, 100])])
def test_the_pair_still_rebuilds_x_t(name, t):
    x_0, x_t = 3 * jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    changed = WRAPPERS[name](denoiser_that_says(x_0), SCHEDULE)(x_t, t, None)
    signal, noise = process.scales_like(SCHEDULE, t, x_t)
    np.testing.assert_allclose(signal * changed.x_0 + noise * changed.eps, x_t, atol=1e-4)
    assert not np.allclose(changed.x_0, x_0)


def test_clip():
    x_0 = jnp.array([[-7.0, -0.3, 0.9, 4.0]])
    clipped = dj.clip_x0(denoiser_that_says(x_0), SCHEDULE)(jnp.ones((1, 4)), 5)
    np.testing.assert_allclose(clipped.x_0, [[-1.0, -0.3, 0.9, 1.0]])


def test_clipping_what_is_in_range_changes_nothing():
    x_0 = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1), minval=-0.9, maxval=0.9)
    x_t = jnp.ones((2, 4, 4, 1))
    plain = denoiser_that_says(x_0)
    for wrap in (dj.clip_x0, dj.dynamic_threshold):
        for a, b in zip(wrap(plain, SCHEDULE)(x_t, 7)[:2], plain(x_t, 7)[:2], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_dynamic_threshold_of_each_example():
    values = np.linspace(-4, 4, 101, dtype=np.float32)
    x_0 = jnp.asarray(np.stack([values, values / 8])[..., None])
    out = dj.dynamic_threshold(denoiser_that_says(x_0), SCHEDULE, percentile=50.0)(x_0, 5).x_0
    # Half of |x_0| lies under 2 in the first example: it is cut there and scaled to 1.
    np.testing.assert_allclose(out[0, :, 0], np.clip(values, -2, 2) / 2, atol=1e-5)
    # In the second, all is within [-1, 1]: s = 1 and nothing changes.
    np.testing.assert_allclose(out[1, :, 0], values / 8, atol=1e-6)


@pytest.mark.parametrize("cap", [1.0, 1.5, 4.0, 100.0])
def test_dynamic_threshold_of_diffusers(cap):
    diffusers = pytest.importorskip("diffusers", reason="a second implementation")
    torch = pytest.importorskip("torch", reason="diffusers needs torch")
    x_0 = 3 * np.array(jax.random.normal(jax.random.key(0), (3, 5, 5, 2)))
    theirs = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=cap
    )._threshold_sample(torch.tensor(x_0))
    wrap = dj.dynamic_threshold(
        denoiser_that_says(jnp.asarray(x_0)), SCHEDULE, percentile=90.0, cap=cap
    )
    np.testing.assert_allclose(wrap(jnp.ones_like(x_0), 5).x_0, theirs.numpy(), rtol=1e-4)


def test_a_cap_of_1_clips():
    x_0 = 3 * jax.random.normal(jax.random.key(0), (3, 5, 5, 2))
    capped = dj.dynamic_threshold(denoiser_that_says(x_0), SCHEDULE, cap=1.0)
    clipped = dj.clip_x0(denoiser_that_says(x_0), SCHEDULE)
    np.testing.assert_allclose(capped(x_0, 5).x_0, clipped(x_0, 5).x_0, rtol=1e-6)


def test_a_clipped_sampler_stays_in_range():
    wild = denoiser_that_says(jnp.full((2, 3), 50.0))
    grid = dj.grids.trailing(SCHEDULE, 10)
    for run in (samplers.ddim, samplers.heun, samplers.dpm_solver_pp_2m):
        x_0 = run(dj.clip_x0(wild, SCHEDULE), jnp.ones((2, 3)), grid=grid).x_0
        np.testing.assert_allclose(x_0, 1, atol=1e-5)


def test_cond_is_passed_through():
    seen = []

    def denoise(x_t, t, cond=None):
        seen.append(cond)
        return dj.Estimates(x_t, x_t)

    dj.clip_x0(denoise, SCHEDULE)(jnp.ones((1, 2)), 3, "label")
    assert seen == ["label"]


def test_refusals():
    denoise = denoiser_that_says(jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"low < high, not \[1.0, -1.0\]"):
        dj.clip_x0(denoise, SCHEDULE, low=1.0, high=-1.0)
    for percentile in (0.0, 100.1, -5.0):
        with pytest.raises(ValueError, match=r"percentile must be in \(0, 100\]"):
            dj.dynamic_threshold(denoise, SCHEDULE, percentile=percentile)
    with pytest.raises(ValueError, match=r"cap must be at least 1, not 0\.5"):
        dj.dynamic_threshold(denoise, SCHEDULE, cap=0.5)
