"""Conversions: every cycle, autodiff of densities and paths, EDM's published coefficients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import parametrisations as p
from diffjax import schedules

ALL = {
    "x0": p.x0, "eps": p.eps, "v": p.v, "score": p.score, "velocity": p.velocity,
    "edm(0.5)": p.edm(0.5), "edm(1.3)": p.edm(1.3),
}  # fmt: skip
SCALES = {
    "vp": dj.Scales(jnp.float32(0.8), jnp.float32(0.6)),
    "flow": dj.Scales(jnp.float32(0.3), jnp.float32(0.7)),
    "edm": dj.Scales(jnp.float32(1.0), jnp.float32(2.5)),
}
KEY = jax.random.key(3)
X_0, EPS = jax.random.normal(KEY, (2, 4, 5, 5, 1))


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("names", itertools.product(ALL, ALL), ids="-".join)
def test_every_cycle_returns(names, scales):
    source, target = (ALL[name] for name in names)
    x_t = scales.signal_scale * X_0 + scales.noise_scale * EPS
    value = source.target(X_0, EPS, scales)
    there = dj.convert(value, x_t, source=source, target=target, scales=scales)
    np.testing.assert_allclose(there, target.target(X_0, EPS, scales), rtol=2e-5, atol=2e-5)
    back = dj.convert(there, x_t, source=target, target=source, scales=scales)
    np.testing.assert_allclose(back, value, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("name", ALL)
def test_any_value_gives_estimates_that_rebuild_x_t(name, scales):
    x_t, value = X_0, 2 * EPS  # not a true pair: a network's error
    x_0, eps, _ = ALL[name].estimates(value, x_t, scales)
    rebuilt = scales.signal_scale * x_0 + scales.noise_scale * eps
    np.testing.assert_allclose(rebuilt, x_t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in ALL if not ALL[n].needs_signal])
def test_estimates_are_finite_without_signal(name):
    pure_noise = dj.Scales(jnp.float32(0.0), jnp.float32(1.0))
    x_0, eps, _ = ALL[name].estimates(X_0, EPS, pure_noise)
    assert np.isfinite(x_0).all()
    np.testing.assert_allclose(eps, EPS, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in ALL if ALL[n].needs_signal])
def test_what_needs_signal_is_infinite_without(name):
    pure_noise = dj.Scales(jnp.float32(0.0), jnp.float32(1.0))
    assert not np.isfinite(ALL[name].estimates(X_0, EPS, pure_noise).x_0).any()


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_score_is_the_gradient_of_the_log_density(scales):
    x_0, eps = jnp.float32(0.4), jnp.float32(-1.1)
    x_t = scales.signal_scale * x_0 + scales.noise_scale * eps
    log_density = lambda x: jax.scipy.stats.norm.logpdf(  # noqa: E731
        x, scales.signal_scale * x_0, scales.noise_scale
    )
    np.testing.assert_allclose(p.score.target(x_0, eps, scales), jax.grad(log_density)(x_t), 1e-5)


def test_velocity_is_the_time_derivative_of_a_rectified_flow():
    flow, t = schedules.rectified_flow(), 0.37
    path = lambda t: dj.q_sample(flow, X_0, t=t, eps=EPS)  # noqa: E731
    _, derivative = jax.jvp(path, (t,), (1.0,))
    np.testing.assert_allclose(p.velocity.target(X_0, EPS, flow(t)), derivative, atol=1e-5)


def test_v_is_the_derivative_of_the_variance_preserving_path_by_its_angle():
    def path(angle):
        return dj.schedules.Scales(jnp.cos(angle), jnp.sin(angle))

    def x(angle):
        scales = path(angle)
        return scales.signal_scale * X_0 + scales.noise_scale * EPS

    _, derivative = jax.jvp(x, (0.7,), (1.0,))
    np.testing.assert_allclose(p.v.target(X_0, EPS, path(0.7)), derivative, atol=1e-6)


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("name", ALL)
def test_gain_is_the_squared_change_per_change_of_x_0(name, scales):
    x_t, change = jnp.float32(0.7), jnp.float32(0.25)

    def value(x_0):
        return dj.convert(x_0, x_t, source=p.x0, target=ALL[name], scales=scales)

    moved = (value(0.1 + change) - value(jnp.float32(0.1))) / change
    np.testing.assert_allclose(p.gain(ALL[name], scales), moved**2, rtol=1e-4)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_edm_target_has_unit_variance(sigma_data, scales):
    n = 200_000
    x_0, eps = jax.random.normal(KEY, (2, n))
    target = p.edm(sigma_data).target(sigma_data * x_0, eps, scales)
    # Karras et al. 2022, appendix B.6. The variance's standard error is sqrt(2 / n): four of them.
    assert abs(float(target.var()) - 1) < 4 * np.sqrt(2 / n)
    network_input = p.edm(sigma_data).input_scale(scales) * (
        scales.signal_scale * sigma_data * x_0 + scales.noise_scale * eps
    )
    assert abs(float(network_input.var()) - 1) < 4 * np.sqrt(2 / n)


@pytest.mark.parametrize(
    ("sigma", "c_skip", "c_out", "c_in"),
    [
        # Table 1's formulas in exact fractions at sigma_data = 1/2.
        (0.5, 1 / 2, 0.5 / 2**0.5, 2**0.5),
        (1.2, 0.25 / 1.69, 0.6 / 1.3, 1 / 1.3),  # 0.5, 1.2, 1.3: a right triangle
        (6.0, 0.25 / 36.25, 3 / 36.25**0.5, 36.25**-0.5),
    ],
)
def test_edm_estimate_has_the_published_preconditioning(sigma, c_skip, c_out, c_in):
    edm, scales = p.edm(), dj.Scales(jnp.float32(1.0), jnp.float32(sigma))
    at = lambda x, F: float(edm.estimates(jnp.float32(F), jnp.float32(x), scales).x_0)  # noqa: E731
    assert at(1, 0) == pytest.approx(c_skip, rel=1e-5)
    assert at(0, 1) == pytest.approx(c_out, rel=1e-5)
    assert float(edm.input_scale(scales)) == pytest.approx(c_in, rel=1e-5)


def test_edm_of_unit_data_on_a_variance_preserving_schedule_is_minus_v():
    scales = SCALES["vp"]
    np.testing.assert_allclose(
        p.edm(1.0).target(X_0, EPS, scales), -p.v.target(X_0, EPS, scales), atol=1e-6
    )
