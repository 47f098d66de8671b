"""The laws of training times, by Kolmogorov and Smirnov's test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from diffjax import schedules, time_sampling

N = 20_000
FLOW, EDM, COSINE = schedules.rectified_flow(), schedules.karras(), schedules.continuous_cosine()
SAMPLERS = {
    "uniform": time_sampling.uniform,
    "low_discrepancy": time_sampling.low_discrepancy,
    "logit_normal": time_sampling.logit_normal(),
    "log_normal": time_sampling.log_normal(),
    "mode": time_sampling.mode(),
    "cosmap": time_sampling.cosmap,
}
ALL_SCHEDULES = [
    FLOW,
    EDM,
    COSINE,
    schedules.linear_beta(1000),
    schedules.cosine(1),
    schedules.zero_terminal_snr(schedules.cosine(10)),
]


def draw(sampler, schedule, n=N, seed=0, indices=None):
    indices = jnp.arange(n) if indices is None else indices
    return np.asarray(sampler(jax.random.key(seed), schedule, indices=indices, batch_size=n))


def assert_law(values, distribution):
    # A true law fails once in ten thousand seeds, and this seed is fixed.
    assert scipy.stats.kstest(values, distribution.cdf).pvalue > 1e-4


def test_uniform_on_a_continuous_schedule():
    assert_law(draw(time_sampling.uniform, COSINE), scipy.stats.uniform())


def test_uniform_on_a_discrete_schedule():
    counts = np.bincount(draw(time_sampling.uniform, schedules.cosine(10)), minlength=11)
    assert counts[0] == 0 and len(counts) == 11
    assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-4


@pytest.mark.parametrize("seed", range(5))
def test_low_discrepancy_covers_each_stratum_once(seed):
    n = 64
    t = draw(time_sampling.low_discrepancy, COSINE, n, seed)
    # Differences, not floors: an offset shared by all moves every stratum alike.
    offset = t.min()
    np.testing.assert_allclose(np.sort(t) - offset, np.arange(n) / n, atol=2e-5)
    assert offset < 1 / n + 1e-6
    steps = draw(time_sampling.low_discrepancy, schedules.cosine(n), n, seed)
    np.testing.assert_array_equal(np.sort(steps), np.arange(1, n + 1))


def test_each_low_discrepancy_time_is_uniform():
    firsts = jax.vmap(
        lambda k: time_sampling.low_discrepancy(k, COSINE, indices=jnp.array([3]), batch_size=8)[0]
    )(jax.random.split(jax.random.key(0), 2000))
    assert_law(np.asarray(firsts), scipy.stats.uniform())


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7)])
def test_logit_normal(mean, std):
    t = draw(time_sampling.logit_normal(mean=mean, std=std), FLOW)
    assert_law(scipy.special.logit(t.astype(np.float64)), scipy.stats.norm(mean, std))


def test_cosmap_has_its_density():
    density = lambda t: 2 / (np.pi - 2 * np.pi * t + 2 * np.pi * t**2)  # noqa: E731
    grid = np.linspace(0, 1, 2001)
    cdf = scipy.integrate.cumulative_simpson(density(grid), x=grid, initial=0)
    assert cdf[-1] == pytest.approx(1, abs=1e-9)
    t = draw(time_sampling.cosmap, FLOW)
    assert scipy.stats.kstest(t, lambda x: np.interp(x, grid, cdf)).pvalue > 1e-4


def test_cosmap_gives_a_flow_the_log_snr_of_the_cosine_schedule():
    # Uniform times of the cosine schedule, with log SNR = -2 log tan(pi t / 2).
    log_snr = FLOW.log_snr(draw(time_sampling.cosmap, FLOW).astype(np.float64))
    t = 2 / np.pi * np.arctan(np.exp(-log_snr / 2))
    assert_law(t, scipy.stats.uniform())


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_of_diffusers(scale):
    pytest.importorskip("torch", reason="diffusers needs torch").manual_seed(0)
    theirs = pytest.importorskip("diffusers.training_utils", reason="a second implementation")
    drawn = theirs.compute_density_for_timestep_sampling("mode", N, mode_scale=scale).numpy()
    assert scipy.stats.ks_2samp(draw(time_sampling.mode(scale=scale), FLOW), drawn).pvalue > 1e-4


def test_the_scale_of_mode_moves_times_to_the_middle_or_to_the_ends():
    def near_the_middle(scale):
        return (np.abs(draw(time_sampling.mode(scale=scale), FLOW) - 0.5) < 0.1).mean()

    assert near_the_middle(-0.9) < 0.17 < near_the_middle(0.0) < 0.23 < near_the_middle(1.29)
    with pytest.raises(ValueError, match="scale must be in"):
        time_sampling.mode(scale=2.0)


def test_log_normal_on_edms_schedule():
    t = draw(time_sampling.log_normal(), EDM)
    log_sigma = np.log(EDM(t.astype(np.float64)).noise_scale)
    ends = (np.log([0.002, 80.0]) + 1.2) / 1.2
    assert_law(log_sigma, scipy.stats.truncnorm(*ends, loc=-1.2, scale=1.2))


def test_log_normal_leaves_no_mass_at_the_ends_it_is_cut_at():
    schedule = schedules.karras(sigma_min=0.1, sigma_max=1.0)
    t = draw(time_sampling.log_normal(), schedule)
    log_sigma = np.log(schedule(t.astype(np.float64)).noise_scale)
    ends = (np.log([0.1, 1.0]) + 1.2) / 1.2
    assert_law(log_sigma, scipy.stats.truncnorm(*ends, loc=-1.2, scale=1.2))


def test_log_normal_takes_the_nearest_step():
    schedule = schedules.linear_beta(1000)
    t = draw(time_sampling.log_normal(), schedule)
    assert t.dtype == np.int32
    # The law at the borders between two steps, where the rounding does not blur it.
    border = np.array([20.5, 100.5, 300.5, 600.5])
    sigma = np.exp(-schedule.log_snr(border) / 2)
    lowest, highest = np.exp(-schedule.log_snr(np.array([1.0, 1000.0])) / 2)
    ends = (np.log([lowest, highest]) + 1.2) / 1.2
    expected = scipy.stats.truncnorm.cdf(np.log(sigma), *ends, loc=-1.2, scale=1.2)
    observed = (t[:, None] < border).mean(0)
    assert np.all(np.abs(observed - expected) < 4 * np.sqrt(expected * (1 - expected) / N))


@pytest.mark.parametrize("schedule", ALL_SCHEDULES, ids=lambda s: f"T={s.T}")
@pytest.mark.parametrize("name", SAMPLERS)
def test_range_type_and_finite_log_snr(name, schedule):
    t = draw(SAMPLERS[name], schedule)
    assert t.shape == (N,)
    if schedule.discrete:
        assert t.dtype == np.int32
        assert t.min() >= 1 and t.max() <= schedule.T
    else:
        assert t.dtype == np.float32
        assert t.min() > 0 and t.max() < 1
        assert np.isfinite(schedule.log_snr(jnp.asarray(t))).all()


@pytest.mark.parametrize("schedule", [FLOW, schedules.linear_beta(1000)], ids=["flow", "linear"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_times_do_not_depend_on_how_the_batch_is_split(name, schedule):
    n = 16
    whole = draw(SAMPLERS[name], schedule, n)
    halves = [draw(SAMPLERS[name], schedule, n, indices=i) for i in np.split(np.arange(n), 2)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert not np.array_equal(whole, draw(SAMPLERS[name], schedule, n, seed=1))
