"""Sampling grids: ends, spacing, published step lists, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, samplers, schedules
from tests import k_diffusion
from tests.sampling.samplers.known import gaussian_denoiser, ode_solution

LINEAR = schedules.linear_beta(1000)
FLOW, EDM = schedules.rectified_flow(), schedules.karras()
ALL = {"trailing": grids.trailing, "leading": grids.leading, "linspace": grids.linspace,
       "karras": grids.karras, "exponential": grids.exponential,
       "uniform_log_snr": grids.uniform_log_snr, "beta": grids.beta,
       "flow_shift": grids.flow_shift, "polyexponential": grids.polyexponential}  # fmt: skip
WHOLE = ("trailing", "leading", "linspace")


@pytest.mark.parametrize("schedule", [LINEAR, FLOW, EDM, schedules.cosine(7)],
                         ids=["linear", "flow", "edm", "cosine"])  # fmt: skip
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 5, 7])
def test_grids_fall_to_clean_data(name, schedule, steps):
    grid = ALL[name](schedule, steps)
    assert grid.steps == steps
    assert grid.t.shape == grid.signal_scale.shape == grid.noise_scale.shape == (steps + 1,)
    # EDM's t = 0 still has noise: there the last step goes from t = 0 to clean data.
    assert np.all(np.diff(grid.t[:-1]) < 0) and grid.t[0] <= schedule.T
    assert np.all(np.diff(grid.noise_scale) < 0) and np.all(np.diff(grid.signal_scale) >= 0)
    assert grid.t[-2] >= schedule.t_min
    assert (grid.t[-1], grid.signal_scale[-1], grid.noise_scale[-1]) == (0, 1, 0)
    signal, noise = schedule(grid.t[:-1])
    np.testing.assert_array_equal(grid.signal_scale[:-1], signal)
    np.testing.assert_array_equal(grid.noise_scale[:-1], noise)
    whole = schedule.discrete and name in WHOLE
    assert grid.t.dtype == (np.int64 if whole else np.float64)


@pytest.mark.parametrize("name", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("T", [1, 2, 3, 50, 101])
def test_every_number_of_steps_up_to_T(name, T):
    schedule = schedules.cosine(T)
    for steps in range(1, T + 1):
        assert ALL[name](schedule, steps).steps == steps
    np.testing.assert_array_equal(ALL[name](schedule, T).t, np.arange(T, -1, -1))


def test_trailing_starts_at_pure_noise_to_the_last_bit():
    for steps in range(1, 500):
        assert grids.trailing(FLOW, steps).signal_scale[0] == 0
    assert grids.linspace(FLOW, 10).t[0] == 1


def test_step_lists_of_the_papers():
    # Lin et al. 2024, section 3.3, table 2: T = 1000, 10 steps, in times 1..1000.
    assert grids.trailing(LINEAR, 10).t.tolist() == [*range(1000, 0, -100), 0]
    assert grids.leading(LINEAR, 10).t.tolist() == [*range(901, 0, -100), 0]
    assert grids.linspace(LINEAR, 10).t.tolist() == [*range(1000, 0, -111), 0]


def test_spacings_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="a second implementation of the spacings")
    # Theirs are times 0..999 of the networks; ours count the steps of the process from 1.
    for name, steps in (("leading", 30), ("trailing", 30), ("linspace", 8)):
        theirs = diffusers.DDPMScheduler(1000, timestep_spacing=name)
        theirs.set_timesteps(steps)
        assert ALL[name](LINEAR, steps).t[:-1].tolist() == (theirs.timesteps.numpy() + 1).tolist()


def test_karras_sigmas_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="a second implementation of EDM's sigmas")
    theirs = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    theirs.set_timesteps(18)
    ours = grids.karras(EDM, 18)
    np.testing.assert_allclose(ours.noise_scale, theirs.sigmas.numpy(), rtol=1e-5)


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0])
def test_polyexponential_sigmas_of_k_diffusion(rho):
    sigmas = k_diffusion.sampling().get_sigmas_polyexponential(12, 0.01, 50.0, rho=rho).numpy()
    ours = grids.polyexponential(EDM, 12, rho=rho, sigma_min=0.01, sigma_max=50.0)
    np.testing.assert_allclose(ours.noise_scale, sigmas, rtol=1e-4)


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        # DeepFloyd IF's "fast27", made by guided-diffusion's space_timesteps.
        ("10,10,3,2,2", [999, 800, 799, 600, 599, 500, 400, 399, 377, 355, 333, 311, 288, 266, 244,
                         222, 200, 199, 177, 155, 133, 111, 88, 66, 44, 22, 0]),
        ("ddim10", [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
    ],
)  # fmt: skip
def test_sections_are_the_published_ones(counts, published):
    ours = grids.sections(LINEAR, len(published), counts=counts)
    assert ours.t.dtype == np.int64 and ours.t[-1] == 0
    assert ours.t[:-1].tolist() == [t + 1 for t in published]  # theirs count from 0


def improved_diffusions(size, count):
    """A section's times as in that code: a stride that is added up, and Python's rounding."""
    stride = (size - 1) / (count - 1) if count > 1 else 1
    found, place = [], 0.0
    for _ in range(count):
        found.append(round(place))
        place += stride
    return found


def test_halves_are_rounded_as_they_were():
    for T, steps in ((10, 7), (200, 45), (1000, 400), (1000, 750)):
        ours = grids.sections(schedules.cosine(T), steps).t[:-1]
        assert (ours[::-1] - 1).tolist() == improved_diffusions(T, steps)


def test_sections_differ_by_a_step_where_T_does_not_divide():
    schedule = schedules.cosine(11)  # sections of 4, 4 and 3 steps
    assert grids.sections(schedule, 6, counts=(2, 3, 1)).t.tolist() == [9, 8, 7, 5, 4, 1, 0]
    assert grids.sections(schedule, 6, counts="2, 3, 1").t.tolist() == [9, 8, 7, 5, 4, 1, 0]
    assert grids.sections(schedule, 11).t.tolist() == list(range(11, -1, -1))
    # Not every number of times has a whole stride: 11 steps have 4 by 3 (or 2 by 6), none of 5.
    assert grids.sections(schedule, 4, counts="ddim4").t.tolist() == [10, 7, 4, 1, 0]
    with pytest.raises(ValueError, match="no whole stride through 11 gives 5 times"):
        grids.sections(schedule, 5, counts="ddim5")


@pytest.mark.parametrize("schedule", [LINEAR, FLOW, schedules.continuous_cosine()],
                         ids=["linear", "flow", "cosine"])  # fmt: skip
def test_karras_has_the_same_sigmas_on_every_schedule(schedule):
    asked = {"sigma_min": 0.02, "sigma_max": 60.0}
    grid = grids.karras(schedule, 10, **asked)
    sigma = grid.noise_scale / grid.signal_scale
    np.testing.assert_allclose(sigma, grids.karras(EDM, 10, **asked).noise_scale, rtol=1e-8)
    np.testing.assert_allclose(sigma[[0, -2]], [60.0, 0.02], rtol=1e-8)


def test_karras_by_default_stays_within_the_schedule():
    grid = grids.karras(schedules.zero_terminal_snr(LINEAR), 5)
    sigma = grid.noise_scale[:-1] / grid.signal_scale[:-1]
    assert sigma[0] == pytest.approx(80) and grid.t[-2] == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.trailing(LINEAR, 0), "at least 1 step, not 0"),
        (lambda: grids.karras(LINEAR, 0), "at least 1 step, not 0"),
        (lambda: grids.leading(LINEAR, 1001), "take at most 1000"),
        (lambda: grids.trailing(FLOW, 2000), r"must lie in \[0.001, 1.0\]"),
        (lambda: grids.from_times(LINEAR, np.array([])), "at least one time"),
        (lambda: grids.from_times(LINEAR, np.array([[3, 2]])), "at least one time"),
        (lambda: grids.from_times(LINEAR, np.array([3, 3])), "fall strictly"),
        (lambda: grids.from_times(LINEAR, np.array([3.0, np.nan])), "fall strictly"),
        (lambda: grids.from_times(LINEAR, np.array([1001, 1])), r"in \[1, 1000\]"),
        (lambda: grids.from_times(LINEAR, np.array([5, 0])), r"in \[1, 1000\]"),
        (lambda: grids.karras(EDM, 5, sigma_max=100.0), "sigma_max 100 must rise within"),
        (lambda: grids.karras(EDM, 5, sigma_min=3.0, sigma_max=2.0), "must rise within"),
        (lambda: grids.karras(LINEAR, 5, sigma_min=1e-4), "sigma_min 0.0001"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_exponential_and_uniform_log_snr_are_even_in_log_snr():
    for grid in (grids.exponential(EDM, 9), grids.uniform_log_snr(schedules.cosine(1000), 9)):
        signal, noise = grid.signal_scale[:-1], grid.noise_scale[:-1]
        steps = np.diff(np.log(signal / noise))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-3)


def test_beta_has_its_quantiles():
    times = grids.beta(FLOW, 101, a=0.6, b=0.6).t[:-1]
    shares = (times - FLOW.t_min) / (FLOW.T - FLOW.t_min)
    np.testing.assert_allclose(shares + shares[::-1], 1, atol=1e-12)  # Beta(0.6, 0.6) is symmetric
    # Both ends attract: the first steps are far smaller than those in the middle.
    assert shares[0] - shares[1] < 0.1 * (shares[50] - shares[51])
    draws = np.random.default_rng(0).beta(0.6, 0.6, 200_000)
    np.testing.assert_allclose(np.quantile(draws, [0.2, 0.7]), shares[[80, 30]], atol=0.01)


def test_flow_shift_moves_times_as_scaling_the_noise_by_the_shift_would():
    plain, shifted = grids.trailing(FLOW, 8), grids.flow_shift(FLOW, 8, shift=3.0)
    ratio = shifted.noise_scale[1:-1] / shifted.signal_scale[1:-1]
    np.testing.assert_allclose(ratio, 3 * plain.noise_scale[1:-1] / plain.signal_scale[1:-1])
    np.testing.assert_allclose(grids.flow_shift(FLOW, 8, shift=1.0).t, plain.t)


@pytest.mark.parametrize("even_in", ["lambda", "u"])
def test_stages_lie_where_they_should(even_in):
    schedule, fractions = schedules.continuous_cosine(), (1 / 3, 2 / 3)
    grid = grids.trailing(schedule, 4)
    staged = grids.with_stages(schedule, grid, fractions=fractions, even_in=even_in)
    place = np.log(staged.signal_scale[:-1] / staged.noise_scale[:-1])
    if even_in == "u":
        place = staged.noise_scale / (staged.noise_scale + staged.signal_scale)
    steps = np.diff(place)[:9].reshape(3, 3)
    np.testing.assert_allclose(steps, steps[:, :1] * np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(staged.t[:10:3], grid.t[:4])
    ends_with_noise = grids.with_stages(schedule, grids.stop_before_clean(grid))
    assert ends_with_noise.steps == 6 and ends_with_noise.noise_scale[-1] > 0


@pytest.mark.parametrize("schedule", [LINEAR, FLOW, EDM, schedules.cosine(7)],
                         ids=["linear", "flow", "edm", "cosine"])  # fmt: skip
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_every_grid_takes_the_stages_of_rk4(name, schedule, steps):
    grid = ALL[name](schedule, steps)
    staged = grids.with_stages(schedule, grid, even_in="u")
    u = staged.noise_scale / (staged.noise_scale + staged.signal_scale)
    ends, stages = u[: 2 * steps : 2], u[1 : 2 * steps - 1 : 2]
    np.testing.assert_allclose(stages, (ends[:-1] + ends[1:]) / 2, rtol=1e-6)
    np.testing.assert_allclose(staged.t[: 2 * steps : 2], grid.t[:-1])
    # The step to clean data is halved where the schedule has the level, and else stays whole.
    with np.errstate(divide="ignore"):
        least = np.exp(-schedule.log_snr(np.float64(schedule.t_min)) / 2)
    halved = u[2 * steps - 2] / 2 >= least / (1 + least) * (1 - 1e-9)
    assert staged.steps == 2 * steps - 1 + halved
    if staged.steps > 1:
        jax.eval_shape(
            lambda x: samplers.rk4(gaussian_denoiser(schedule), x, grid=staged).x_0, jnp.ones(2)
        )


@pytest.mark.parametrize("schedule", [LINEAR, FLOW, EDM], ids=["linear", "flow", "edm"])
@pytest.mark.parametrize("name", ["linspace", "karras"])
def test_rk4_on_grids_with_stages_reaches_the_exact_solution(name, schedule):
    grid = grids.with_stages(schedule, ALL[name](schedule, 30), even_in="u")
    x_T = jnp.array([[-1.5], [0.2], [1.0]]) * grid.noise_scale[0]
    x_0 = samplers.rk4(gaussian_denoiser(schedule), x_T, grid=grid).x_0
    exact = ode_solution(np.asarray(x_T), (grid.signal_scale[0], grid.noise_scale[0]))
    np.testing.assert_allclose(x_0, exact, atol=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.beta(FLOW, 5, a=0.0), "a and b"),
        (lambda: grids.flow_shift(FLOW, 5, shift=-1.0), "shift"),
        (lambda: grids.polyexponential(EDM, 5, rho=0.0), "rho must be above 0, not 0.0"),
        (lambda: grids.sections(FLOW, 5), "of a discrete schedule's steps"),
        (lambda: grids.sections(LINEAR, 5, counts=(2, 2)), "sum to 4, but the grid has 5"),
        (lambda: grids.sections(LINEAR, 9, counts="ddim5"), "sum to 5, but the grid has 9"),
        (lambda: grids.sections(schedules.cosine(6), 5, counts=(4, 1)), "of 3 steps has no 4"),
        (lambda: grids.sections(LINEAR, 5, counts="ddim2,3"), "'10,10,15' or 'ddim25', not"),
        (lambda: grids.sections(LINEAR, 5, counts="5.0"), "'10,10,15' or 'ddim25', not"),
        (lambda: grids.sections(LINEAR, 5, counts=(5, 0)), "'10,10,15' or 'ddim25', not"),
        (lambda: grids.exponential(EDM, 5, sigma_min=90.0), "sigma_min"),
        (lambda: grids.with_stages(FLOW, grids.trailing(FLOW, 3), fractions=(0.6, 0.4)), "rise"),
        (lambda: grids.with_stages(FLOW, grids.trailing(FLOW, 3), even_in="t"), "even_in"),
        (lambda: grids.stop_before_clean(grids.trailing(FLOW, 1)), "one step"),
    ],
)
def test_what_new_grids_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_given_times_and_sigmas_are_visited():
    grid = grids.at(LINEAR, 2, times=(1000, 320))
    assert grid.t.tolist() == [1000, 320, 0] and grid.t.dtype.kind == "i"
    assert grids.at(LINEAR, 1, times=(320.5,)).t.dtype.kind == "f"
    assert grids.at(FLOW, 2, times=(1.0, 0.4)).t.tolist() == [1.0, 0.4, 0.0]
    # ECT's two steps: sigma is noise over signal on every schedule.
    for schedule in (EDM, FLOW, LINEAR):
        grid = grids.at(schedule, 2, sigmas=(80.0, 0.821))
        np.testing.assert_allclose(
            grid.noise_scale[:2] / grid.signal_scale[:2], [80.0, 0.821], rtol=2e-3
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of times and sigmas"),
        ({"times": (0.5, 0.2), "sigmas": (1.0, 0.5)}, "give one of times and sigmas"),
        ({"times": (0.5,)}, "1 times or sigmas were given for 2 steps"),
        ({"times": (0.2, 0.5)}, "must fall strictly"),
        ({"times": (1.5, 0.5)}, "must lie in"),
        ({"sigmas": (1.0, 0.0)}, "sigmas must be above 0"),
    ],
)
def test_given_times_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        grids.at(FLOW, 2, **options)
