"""Noise schedules against published numbers, diffusers' tables and their defining properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from diffjax import schedules
from tests import k_diffusion

DISCRETE = {
    "linear_beta": schedules.linear_beta,
    "quadratic_beta": schedules.quadratic_beta,
    "linear_alpha_bar": schedules.linear_alpha_bar,
    "cosine": schedules.cosine,
    "sigmoid": schedules.sigmoid,
}
CONTINUOUS = {
    "continuous_cosine": schedules.continuous_cosine(),
    "linear_log_snr": schedules.linear_log_snr(),
    "karras": schedules.karras(),
    "vp_sde": schedules.vp_sde(),
    "vp_sde, constant beta": schedules.vp_sde(beta_min=6.0, beta_max=6.0),
    "polynomial": schedules.polynomial(),
    "polynomial, 0.7": schedules.polynomial(power=0.7, offset=1e-3),
    "rectified_flow": schedules.rectified_flow(),
    "shifted flow": schedules.shift_log_snr(schedules.rectified_flow(), -1.5),
    "shifted cosine": schedules.shift_log_snr(schedules.continuous_cosine(), 2.0),
}


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("T", [1, 2, 10, 1000, 4000])
def test_discrete_tables_run_from_clean_data_to_noise(name, T):
    schedule = DISCRETE[name](T)
    assert schedule.T == T and schedule.discrete and schedule.t_min == 1
    assert schedule.signal_scale.dtype == schedule.noise_scale.dtype == np.float64
    assert schedule.signal_scale.shape == schedule.noise_scale.shape == (T + 1,)
    assert (schedule.signal_scale[0], schedule.noise_scale[0]) == (1, 0)
    assert np.all(np.diff(schedule.signal_scale) < 0)
    assert np.all(np.diff(schedule.noise_scale) > 0)
    np.testing.assert_allclose(
        schedule.signal_scale**2 + schedule.noise_scale**2, 1, rtol=0, atol=1e-14
    )
    assert np.all((schedule.beta[1:] > 0) & (schedule.beta[1:] <= 1)) and schedule.beta[0] == 0
    # The last entry is noise whatever the number of steps.
    assert schedule.alpha_bar[-1] < 2e-3


@pytest.mark.parametrize(
    ("schedule", "snr_T", "signal_T"),
    [
        # Lin et al. 2024, table 1.
        (schedules.linear_beta(1000), 4.035993e-05, 0.006353),
        (schedules.cosine(1000), 2.428735e-09, 4.928220e-05),
        (schedules.quadratic_beta(1000, beta_start=8.5e-4, beta_end=0.012), 0.004682, 0.068265),
    ],
    ids=["linear", "cosine", "stable diffusion"],
)
def test_terminal_snr_is_the_published_one(schedule, snr_T, signal_T):
    np.testing.assert_allclose(np.exp(schedule.log_snr(1000)), snr_T, rtol=2e-4)
    np.testing.assert_allclose(schedule.signal_scale[-1], signal_T, rtol=1e-4)


def test_ddpm_betas():
    beta = schedules.linear_beta(1000).beta
    np.testing.assert_allclose(beta[[1, 1000]], [1e-4, 0.02], rtol=1e-12)
    np.testing.assert_allclose(np.diff(beta[1:]), 0.0199 / 999, rtol=1e-9)


@pytest.mark.parametrize("T", [1, 2, 10, 1000, 4000])
def test_cosine_betas_stay_below_999(T):
    assert schedules.cosine(T).beta.max() == pytest.approx(0.999, rel=1e-9)


def test_a_single_linear_step_is_the_noisiest_one():
    assert schedules.linear_beta(1, beta_start=0.1, beta_end=0.9).beta[1] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (
            schedules.linear_beta(1000),
            {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        ),
        (
            schedules.quadratic_beta(1000, beta_start=8.5e-4, beta_end=0.012),
            {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
        ),
        (schedules.cosine(1000), {"beta_schedule": "squaredcos_cap_v2"}),
        (schedules.cosine(250), {"beta_schedule": "squaredcos_cap_v2"}),
        (
            schedules.zero_terminal_snr(schedules.linear_beta(1000)),
            {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
        ),
    ],
    ids=["linear", "scaled_linear", "cosine", "cosine250", "zero_terminal_snr"],
)
def test_tables_of_diffusers(schedule, options):
    diffusers = pytest.importorskip("diffusers", reason="parity with diffusers' tables")
    theirs = diffusers.DDPMScheduler(schedule.T, **options).alphas_cumprod.numpy()
    # Theirs is a float32 product of float32 betas.
    np.testing.assert_allclose(schedule.alpha_bar[1:], theirs, rtol=1e-4, atol=1e-7)


def test_flow_shift_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="parity with diffusers' shift")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=3.0).sigmas.numpy()
    ours = schedules.shift_log_snr(schedules.rectified_flow(), -2 * np.log(3.0))
    t = np.arange(1000, 0, -1) / 1000
    np.testing.assert_allclose(ours(t).noise_scale, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", DISCRETE)
def test_zero_terminal_snr_keeps_the_first_step_and_kills_the_last(name):
    before = DISCRETE[name](50)
    after = schedules.zero_terminal_snr(before)
    assert after.signal_scale[-1] == 0 and after.noise_scale[-1] == 1
    assert after.signal_scale[1] == pytest.approx(before.signal_scale[1], rel=1e-14)
    assert after.beta[-1] == 1
    # An affine change of sqrt(alpha_bar): second differences keep their ratios.
    np.testing.assert_allclose(
        np.corrcoef(np.diff(before.signal_scale[1:]), np.diff(after.signal_scale[1:]))[0, 1], 1
    )


@pytest.mark.parametrize("name", CONTINUOUS)
def test_time_inverts_log_snr(name):
    schedule = CONTINUOUS[name]
    t = np.linspace(max(schedule.t_min, 1e-3), 0.999, 101)
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, rtol=1e-9)
    np.testing.assert_allclose(
        jax.jit(lambda u: schedule.time(schedule.log_snr(u)))(jnp.asarray(t)), t, rtol=5e-4
    )
    assert np.all(np.diff(schedule.log_snr(t)) < 0)


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_time_inverts_log_snr_between_the_steps_too(name):
    schedule = DISCRETE[name](100)
    t = np.linspace(0.3, 99.7, 53)
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, rtol=1e-9)
    np.testing.assert_allclose(
        schedule.time(schedule.log_snr(np.arange(1, 100))), np.arange(1, 100), rtol=1e-9
    )
    assert schedule.time(np.inf) == 0


@pytest.mark.parametrize("name", DISCRETE)
def test_whole_float_times_agree_with_the_table(name):
    schedule = DISCRETE[name](1000)
    steps = np.arange(1001)
    for whole, between in zip(schedule(steps), schedule(steps.astype(float)), strict=True):
        np.testing.assert_allclose(between, whole, rtol=1e-12, atol=1e-15)
    single = jax.jit(schedule)(jnp.arange(1001.0))
    # Relative, at both ends: a scale of 5e-5 is as good as one near 1.
    np.testing.assert_allclose(single.signal_scale, schedule.signal_scale, rtol=2e-6)
    np.testing.assert_allclose(single.noise_scale, schedule.noise_scale, rtol=2e-6)


@pytest.mark.parametrize("name", DISCRETE)
def test_integer_times_agree_in_numpy_and_jitted_jax(name):
    schedule = DISCRETE[name](100)
    t = np.arange(101)
    for host, device in zip(schedule(t), jax.jit(schedule)(jnp.asarray(t)), strict=True):
        assert host.dtype == np.float64 and device.dtype == jnp.float32
        np.testing.assert_array_equal(device, host.astype(np.float32))
    assert schedule.log_snr(0) == np.inf and schedule.log_snr(jnp.int32(0)) == np.inf


@pytest.mark.parametrize("name", CONTINUOUS)
def test_numpy_float64_and_jitted_float32_agree(name):
    schedule = CONTINUOUS[name]
    t = np.linspace(2**-8, 1 - 2**-8, 255).astype(np.float32)  # the same numbers in both types
    host, device = schedule(t.astype(np.float64)), jax.jit(schedule)(jnp.asarray(t))
    for a, b in zip(host, device, strict=True):
        assert a.dtype == np.float64 and b.dtype == jnp.float32
        np.testing.assert_allclose(b, a, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(schedule.log_snr)(jnp.asarray(t)),
        schedule.log_snr(t.astype(np.float64)),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("name", "constraint"),
    [
        ("continuous_cosine", lambda a, b: a**2 + b**2),
        ("linear_log_snr", lambda a, b: a**2 + b**2),
        ("vp_sde", lambda a, b: a**2 + b**2),
        ("polynomial", lambda a, b: a**2 + b**2),
        ("shifted cosine", lambda a, b: a**2 + b**2),
        ("karras", lambda a, b: a),
        ("rectified_flow", lambda a, b: a + b),
        ("shifted flow", lambda a, b: a + b),
    ],
)
def test_geometry_holds_and_its_ratio_is_the_log_snr(name, constraint):
    schedule = CONTINUOUS[name]
    t = np.linspace(0.001, 0.999, 101)
    signal, noise = schedule(t)
    np.testing.assert_allclose(constraint(signal, noise), 1, rtol=1e-13)
    np.testing.assert_allclose(signal**2 / noise**2, np.exp(schedule.log_snr(t)), rtol=1e-12)


def test_published_end_points():
    sigma = schedules.karras()(np.array([0.0, 1.0])).noise_scale
    np.testing.assert_allclose(sigma, [0.002, 80.0], rtol=1e-12)
    middle = schedules.karras()(np.linspace(0, 1, 18)).noise_scale ** (1 / 7)
    np.testing.assert_allclose(np.diff(middle, 2), 0, atol=1e-14)
    for make, low, high in (
        (schedules.continuous_cosine, -15, 15),
        (schedules.linear_log_snr, -10, 13.3),
    ):
        np.testing.assert_allclose(make().log_snr(np.array([0.0, 1.0])), [high, low], rtol=1e-12)
        ends = jax.jit(make().log_snr)(jnp.array([0.0, 1.0]))
        np.testing.assert_allclose(ends, [high, low], rtol=1e-6)


def test_continuous_cosine_is_the_cosine_it_is_named_after():
    schedule = schedules.continuous_cosine(log_snr_min=-40, log_snr_max=40)
    t = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(schedule(t).signal_scale, np.cos(np.pi / 2 * t), rtol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp], ids=["float64", "float32"])
def test_rectified_flow_is_the_straight_line(xp):
    t = xp.asarray(np.concatenate([[0.0, 1e-5, 1e-3], np.linspace(0.01, 0.99, 99), [1.0]]))
    signal, noise = schedules.rectified_flow()(t)
    # The last digit may differ: a few units of the type's precision, relative.
    rtol = 16 * float(xp.finfo(t.dtype).eps)
    np.testing.assert_allclose(signal, 1 - t, rtol=rtol)
    np.testing.assert_allclose(noise, t, rtol=rtol)
    assert (float(signal[0]), float(noise[0])) == (1, 0)
    assert (float(signal[-1]), float(noise[-1])) == (0, 1)


def test_vp_sde_has_the_moments_of_its_sde():
    # dm/dt = -beta m / 2 and dv/dt = beta (1 - v), from m = 1, v = 0, by an ODE solver.
    t = np.linspace(0, 1, 11)
    solved = scipy.integrate.solve_ivp(
        lambda t, y: (0.5 + 9.5 * t) * np.array([-y[0] / 2, 1 - y[1]]),
        (0, 1), [1.0, 0.0], t_eval=t, rtol=1e-10, atol=1e-12,
    )  # fmt: skip
    signal, noise = schedules.vp_sde(beta_min=0.5, beta_max=10.0)(t)
    np.testing.assert_allclose(signal, solved.y[0], rtol=1e-7)
    np.testing.assert_allclose(noise**2, solved.y[1], rtol=1e-7, atol=1e-9)


def test_vp_sde_is_ddpms_schedule_with_many_steps():
    T = 100_000
    table = schedules.linear_beta(T, beta_start=0.1 / T, beta_end=20 / T)
    steps = np.array([100, T // 4, T // 2, T])
    np.testing.assert_allclose(
        schedules.vp_sde().log_snr(steps / T), table.log_snr(steps), rtol=0, atol=2e-3
    )


def test_vp_sigmas_of_k_diffusion():
    theirs = k_diffusion.sampling().get_sigmas_vp(10).numpy()[:-1]
    signal, noise = schedules.vp_sde()(np.linspace(1, 1e-3, 10))
    np.testing.assert_allclose(noise / signal, theirs, rtol=3e-4)  # theirs is float32


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_signal_of_a_polynomial_schedule_is_lost_as_a_power_of_t(power):
    signal = schedules.polynomial(power=power, offset=1e-4)(
        np.array([0, 0.25, 0.5, 1])
    ).signal_scale
    np.testing.assert_allclose(signal[[0, -1]], [0.9999, 1e-4], rtol=1e-12)
    lost = signal[0] - signal
    np.testing.assert_allclose(lost[2:] / lost[1:-1], 2**power, rtol=1e-9)


def test_averaging_pixels_undoes_the_shift_of_a_larger_image():
    k, base = 2, schedules.continuous_cosine()
    large = schedules.shift_log_snr(base, 2 * np.log(1 / k))
    noise = np.random.default_rng(0).normal(size=(400_000, k, k))
    for t in (0.2, 0.5, 0.8):
        signal, scale = large(t)
        averaged_noise = (scale * noise).mean((1, 2)).std()
        log_snr = 2 * np.log(signal / averaged_noise)
        # The std of 400,000 draws is known to 0.11 %, log-SNR to 0.0022: four of them.
        assert log_snr == pytest.approx(base.log_snr(t), abs=0.009)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("s", [0.5, 1.0, 3.0])
def test_shift_of_a_flow_is_sd3s_change_of_time(t, s):
    shifted = schedules.shift_log_snr(schedules.rectified_flow(), -2 * np.log(s))
    sd3_time = s * t / (1 + (s - 1) * t)  # Esser et al. 2024, equation 23
    np.testing.assert_allclose(shifted(t), (1 - sd3_time, sd3_time), rtol=1e-13, atol=1e-16)


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="T >= 1 steps, not 0"):
        schedules.cosine(0)
    for beta in ([], [0.1, 1.5], [0.0, 0.1], [[0.1]], [np.nan]):
        with pytest.raises(ValueError, match=r"values in \(0, 1\]"):
            schedules.from_beta(np.array(beta))
    with pytest.raises(ValueError, match="at least 2 steps"):
        schedules.zero_terminal_snr(schedules.cosine(1))
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        schedules.karras(sigma_min=1.0, sigma_max=0.5)
    with pytest.raises(ValueError, match="log_snr_min must be less"):
        schedules.continuous_cosine(log_snr_min=5.0, log_snr_max=-5.0)
    with pytest.raises(ValueError, match="log_snr_min must be less"):
        schedules.linear_log_snr(log_snr_min=5.0, log_snr_max=-5.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.vp_sde(beta_min=0.0), "0 < beta_min <= beta_max"),
        (lambda: schedules.vp_sde(beta_max=0.05), "0 < beta_min <= beta_max"),
        (lambda: schedules.vp_sde(t_min=1.0), r"t_min must be in \[0, 1\), not 1.0"),
        (lambda: schedules.rectified_flow(t_min=-0.1), r"t_min must be in \[0, 1\), not -0.1"),
        (lambda: schedules.polynomial(power=0.0), "power must be a number above 0, not 0.0"),
        (lambda: schedules.polynomial(offset=0.5), r"offset must be in \(0, 1/2\), not 0.5"),
    ],
)
def test_continuous_schedules_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("signal", "noise", "message"),
    [
        ([1.0, 0.6], [0.0, 0.8, 1.0], "same length"),
        ([1.0], [0.0], "at least one step"),
        ([0.9, 0.6], [0.1, 0.8], "clean data"),
        ([1.0, 0.6, 0.8], [0.0, 0.8, 0.6], "must fall"),
        ([1.0, np.nan], [0.0, np.nan], "must fall"),
        ([1.0, 0.6], [0.0, 0.9], "variance preserving"),
    ],
)
def test_bad_tables_are_refused(signal, noise, message):
    with pytest.raises(ValueError, match=message):
        schedules.DiscreteSchedule(np.array(signal), np.array(noise))
