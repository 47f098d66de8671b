"""Denoisers: every parametrisation of an exact network gives the same exact estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import denoisers, process, schedules
from diffjax import parametrisations as p

MEAN, STD = 0.3, 0.5
ALL = {
    "x0": p.x0, "eps": p.eps, "v": p.v, "score": p.score, "velocity": p.velocity, "edm": p.edm(),
}  # fmt: skip
SCHEDULES = {
    "linear": (schedules.linear_beta(100), jnp.array([1, 40, 100])),
    "flow": (schedules.rectified_flow(), jnp.array([0.01, 0.5, 0.95])),
    "edm": (schedules.karras(), jnp.array([0.05, 0.4, 1.0])),
}


def exact_x_0(x_t, scales):
    """E[x_0 | x_t] by quadrature over x_0, in float64."""
    signal, noise = (np.asarray(s, np.float64) for s in scales)
    x_0 = MEAN + STD * np.linspace(-10, 10, 40_001)
    x_t = np.asarray(x_t, np.float64)[..., None]
    log_density = (
        -(((x_0 - MEAN) / STD) ** 2) / 2
        - ((x_t - signal[..., None] * x_0) / noise[..., None]) ** 2 / 2
    )
    density = np.exp(log_density - log_density.max(-1, keepdims=True))
    return (density * x_0).sum(-1) / density.sum(-1)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("parametrisation", ALL)
def test_exact_estimates_from_every_parametrisation(name, parametrisation):
    (schedule, t), q = SCHEDULES[name], ALL[parametrisation]
    x_0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4))
    x_t = dj.q_sample(schedule, MEAN + STD * x_0, t=t, eps=eps)
    scales = process.scales_like(schedule, t, x_t)
    best = jnp.asarray(exact_x_0(x_t, scales), jnp.float32)

    def network(x, time_input, cond):
        np.testing.assert_allclose(x, q.input_scale(scales) * x_t, rtol=1e-6)
        return q.target(best, p.eps_from_x0(x_t, best, scales), scales)

    estimates = dj.denoiser(network, schedule, parametrisation=q)(x_t, t)
    np.testing.assert_allclose(estimates.x_0, best, rtol=2e-3, atol=2e-3)
    rebuilt = scales.signal_scale * estimates.x_0 + scales.noise_scale * estimates.eps
    np.testing.assert_allclose(rebuilt, x_t, rtol=1e-4, atol=1e-4)


def test_one_time_for_all_is_the_same_as_one_each():
    schedule = schedules.linear_beta(100)
    network = lambda x, t, cond: x * t[:, None]  # noqa: E731
    denoise = dj.denoiser(network, schedule, parametrisation=p.v)
    x = jnp.ones((3, 2))
    for a, b in zip(denoise(x, 7), denoise(x, jnp.full(3, 7)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_edm_denoiser_feeds_a_quarter_of_log_sigma():
    seen = []

    def network(x, time_input, cond):
        seen.append(time_input)
        return x

    schedule = schedules.karras()
    t = schedule.time(-2 * jnp.log(jnp.array([1.0, np.e, 80.0])))
    dj.edm_denoiser(network, schedule)(jnp.ones((3, 2)), t)
    np.testing.assert_allclose(seen[0], [0.0, 0.25, np.log(80) / 4], atol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "t"), [(schedules.rectified_flow(), 1.0), (schedules.rectified_flow(), 0.0)]
)
def test_edm_time_input_is_finite_at_both_ends(schedule, t):
    assert np.isfinite(denoisers.quarter_log_sigma(jnp.asarray(t), schedule))


def test_scaled_time_ends_at_1000_whatever_T_is():
    for schedule in (schedules.cosine(7), schedules.cosine(4000), schedules.rectified_flow()):
        assert float(denoisers.scaled_time(schedule.T, schedule)) == pytest.approx(1000)


def test_networks_in_bfloat16_give_float32_estimates():
    network = lambda x, t, cond: x.astype(jnp.bfloat16)  # noqa: E731
    denoise = dj.denoiser(network, schedules.cosine(10), parametrisation=p.v)
    estimates = denoise(jnp.ones((2, 3)), jnp.array([1, 2]))
    assert estimates.x_0.dtype == estimates.eps.dtype == jnp.float32


def test_an_output_of_another_shape_is_refused():
    denoise = dj.denoiser(lambda x, t, c: x[..., :1], schedules.cosine(10), parametrisation=p.v)
    with pytest.raises(ValueError, match=r"returned \(2, 1\) for x_t of \(2, 3\)"):
        denoise(jnp.ones((2, 3)), 3)


def test_the_scaled_log_snr_is_one_input_for_all_schedules_between_the_ends():
    time_input = denoisers.scaled_log_snr(log_snr_min=-6.0, log_snr_max=8.0)
    ends = {"log_snr_min": -6.0, "log_snr_max": 8.0}
    linear, cosine = schedules.linear_log_snr(**ends), schedules.continuous_cosine(**ends)
    for schedule in (linear, cosine):
        np.testing.assert_allclose(
            time_input(jnp.array([0.0, 1.0]), schedule), [0, 1000], atol=0.05
        )
    # Half of the noise's power is at log-SNR 0: 8 of 14 units from the top, whatever t that is.
    for schedule in (linear, cosine, schedules.cosine(1000)):
        half = jnp.float32(schedule.time(np.float64(0.0)))
        assert float(time_input(half, schedule)) == pytest.approx(8000 / 14, rel=1e-3)


def test_gaussian_denoiser_is_the_posterior_mean_by_quadrature():
    # Each example with a mean of its own: Bayes' rule on a fine grid of x_0, nothing Gaussian but
    # the two densities.
    signal, noise, std = 0.75, 0.25, 0.5
    means, x_t = np.array([-1.0, 0.5]), np.array([0.4, -0.3])
    x_0 = np.linspace(-6, 6, 20001)[:, None]
    joint = np.exp(
        -((x_0 - means) ** 2) / (2 * std**2) - (x_t - signal * x_0) ** 2 / (2 * noise**2)
    )
    exact = (x_0 * joint).sum(0) / joint.sum(0)
    denoise = denoisers.gaussian_denoiser(
        schedules.rectified_flow(), mean=jnp.asarray(means)[:, None], std=std
    )
    pair = denoise(jnp.asarray(x_t, jnp.float32)[:, None], 0.25)
    assert pair.x_0.dtype == jnp.float32
    np.testing.assert_allclose(pair.x_0[:, 0], exact, rtol=1e-5)
    np.testing.assert_allclose(signal * pair.x_0[:, 0] + noise * pair.eps[:, 0], x_t, rtol=1e-5)
