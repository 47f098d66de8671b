"""The bound on Gaussian data, whose exact likelihood, entropy and step divergences are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import diffjax as dj
from diffjax import grids, process, schedules
from diffjax.likelihood.vlb import step_table, vlb
from tests.sampling.samplers.known import FLOW, KEY, MEAN, STD, gaussian_denoiser

FINE = 2**16  # levels so narrow that a bin's mass is the density times its width


def true_variances(grid, std=STD):
    """Of p(x_s | x_t) for N(., std^2) data: Gaussian conditioning, without the posterior of q."""
    signal, noise = grid.scales
    var = (signal * std) ** 2 + noise**2
    ratio = signal[:-1] / signal[1:]
    # x_t = ratio x_s + more noise, so cov(x_s, x_t) = ratio var_s.
    return var[1:] - (ratio * var[1:]) ** 2 / var[:-1]


def exact_mix(grid, std=STD):
    """Where the true variance lies between the two fixed ones, a step at a time."""
    table = step_table(grid)
    return (np.log(true_variances(grid, std)) - table.log_small) / table.log_ratio


def with_mix(denoise, grid, mix):
    """The denoiser with a variance_mix that depends on the time alone; mix (N,)."""

    def learned(x_t, t, cond=None):
        times = jnp.asarray(grid.t[-2::-1].copy(), x_t.dtype)
        at_t = jnp.interp(jnp.asarray(t, x_t.dtype), times, jnp.asarray(mix, x_t.dtype)[::-1])
        return denoise(x_t, t, cond)._replace(variance_mix=jnp.full_like(x_t, at_t))

    return learned


def totals(denoise, x_0, *, grid, mixes, levels=256):
    """The bound's mean for several mixes of the variances, by one compiled program."""

    @jax.jit
    def total(mix):
        learned = with_mix(denoise, grid, mix)
        bound = vlb(learned, x_0, grid=grid, key=KEY, variance="learned", levels=levels)
        return bound.total.mean()

    return [float(total(mix)) for mix in mixes]


def compiled(denoise, x_0, **options):
    return jax.jit(lambda x_0: vlb(denoise, x_0, **options))(x_0)


def quantised(x, levels=256):
    half = (levels - 1) / 2
    return jnp.round((jnp.clip(x, -1, 1) + 1) * half) / half - 1


def images(count=32, dimensions=200, mean=0.1, std=0.3):
    return quantised(mean + std * jax.random.normal(jax.random.key(7), (count, dimensions)))


@pytest.mark.parametrize(
    "grid",
    [grids.from_times(FLOW, np.array([1.0, 0.6, 0.3, 0.05])),
     grids.from_times(schedules.zero_terminal_snr(schedules.cosine(100)), np.array([100, 50, 2]))],
    ids=["flow", "zero snr"],
)  # fmt: skip
def test_terms_telescope_to_the_exact_likelihood_of_each_image(grid):
    # With the true variances the model's chain is q's own chain backwards: no gap at all, however
    # few steps there are. Each image is one value, 40,000 times: as many draws of the noise.
    schedule = FLOW if grid.t.dtype.kind == "f" else schedules.zero_terminal_snr(
        schedules.cosine(100))  # fmt: skip
    with jax.enable_x64(True):
        x_0 = quantised(jnp.array([-0.8, 0.3, 0.7])[:, None], FINE) * jnp.ones((1, 40_000))
        denoise = with_mix(gaussian_denoiser(schedule), grid, exact_mix(grid))
        bound = compiled(denoise, x_0, grid=grid, key=KEY, variance="learned", levels=FINE)
        bound, x_0 = jax.tree.map(np.asarray, (bound, x_0))
    exact = -norm.logpdf(x_0[:, 0], MEAN, STD) / math.log(2) - math.log2(2 / (FINE - 1))
    assert bound.steps.shape == (grid.steps - 1, 3)
    np.testing.assert_allclose(bound.total, bound.prior + bound.steps.sum(0) + bound.reconstruction)
    # A term's spread is a bit or so: five standard errors.
    np.testing.assert_allclose(bound.total, exact, atol=5 * 1.5 / math.sqrt(40_000))


def test_bound_falls_to_the_exact_value_from_above_as_steps_are_added():
    schedule = schedules.linear_log_snr(log_snr_min=-12, log_snr_max=7)
    std = STD / 4  # so that no value lies in the first or last bin
    x_0 = quantised(MEAN + std * jax.random.normal(KEY, (2, 10_000)), FINE)
    exact = -norm.logpdf(np.asarray(x_0), MEAN, std).mean() / math.log(2) - math.log2(
        2 / (FINE - 1)
    )
    denoise = gaussian_denoiser(schedule, MEAN, std)
    gaps = []
    for n in (15, 30, 60):
        grid = grids.linspace(schedule, n)
        # Both fixed variances, and the true one for the reconstruction throughout.
        mixes = [np.append(np.full(n - 1, mix), exact_mix(grid, std)[-1]) for mix in (0.0, 1.0)]
        gaps.append(np.array(totals(denoise, x_0, grid=grid, mixes=mixes, levels=FINE)) - exact)
    assert np.all(gaps[0] > gaps[1]) and np.all(gaps[1] > gaps[2]) and np.all(gaps[2] > 0)
    # A Riemann sum's gap is of order 1 / N: 1 / N^2 and the noise are left after extrapolation.
    assert np.all(np.abs(2 * gaps[2] - gaps[1]) < 0.08)


def test_step_divergences_are_the_falls_of_snr_times_the_conditional_variance():
    schedule = schedules.linear_beta(1000)
    grid = grids.from_times(schedule, np.array([1000, 400, 399, 150, 20, 1]))
    x_0 = MEAN + STD * jax.random.normal(KEY, (4, 25_000))
    bound = compiled(gaussian_denoiser(schedule), x_0, grid=grid, key=jax.random.key(3))
    snr = np.exp(schedule.log_snr(grid.t[:-1]))
    # Kingma et al. 2021, equation 13, with the smallest squared error there is.
    expected = np.diff(snr) / 2 / (1 / STD**2 + snr[:-1]) / math.log(2)
    np.testing.assert_allclose(bound.steps.mean(1), expected, rtol=5 * math.sqrt(2 / 100_000))


@pytest.mark.parametrize("variance", ["beta_tilde", "beta", "learned"])
def test_each_term_is_a_quadrature(variance):
    """A denoiser that always says the same: nothing is random, and (1) to (3) are integrals."""
    schedule, mix = schedules.cosine(50), 0.3
    grid = grids.from_times(schedule, np.array([30, 29, 12, 4]))
    with jax.enable_x64(True):
        x_0 = quantised(jnp.array([[-1.0], [0.2], [1.0]]))
        said = 0.9 * x_0 + 0.004

        def denoise(x_t, t, cond=None):
            return dj.Estimates(said, x_t, jnp.full_like(x_t, mix))

        bound = compiled(denoise, x_0, grid=grid, key=KEY, variance=variance)

        def kl(q_mean, q_std, p_mean, p_std):
            x = q_mean + q_std * np.linspace(-10, 10, 20_001)
            q = norm.pdf(x, q_mean, q_std)
            log_ratio = norm.logpdf(x, q_mean, q_std) - norm.logpdf(x, p_mean, p_std)
            return np.trapezoid(q * log_ratio, x, axis=0) / math.log(2)

        of = lambda x_0, s, t: process.q_posterior(  # noqa: E731
            schedule, jnp.zeros_like(x_0), x_0=x_0, s=s, t=t
        )
        beta = lambda s, t: float(  # noqa: E731
            process.transition(schedule(np.array(s)), schedule(np.array(t)))[1]
        )
        model = {
            "beta_tilde": lambda small, large: small,
            "beta": lambda small, large: large,
            "learned": lambda small, large: small ** (1 - mix) * large**mix,
        }[variance]
        for i, (t, s) in enumerate([(30, 29), (29, 12), (12, 4)]):
            q, p = of(x_0, s, t), of(said, s, t)
            small = float(q.variance)
            expected = [
                kl(float(a), small**0.5, float(b), model(small, beta(s, t)) ** 0.5)
                for a, b in zip(q.mean[:, 0], p.mean[:, 0], strict=True)
            ]
            np.testing.assert_allclose(bound.steps[i], expected, rtol=1e-6)
        signal, noise = schedule(np.array(30))
        prior = [kl(signal * float(x), noise, 0.0, 1.0) for x in x_0[:, 0]]
        np.testing.assert_allclose(bound.prior, prior, rtol=1e-6)
        # The step to clean data borrows the variance of the one before; see the module.
        clipped = float(of(x_0, 4, 12).variance)
        std = (model(clipped, beta(0, 4)) if variance == "learned" else clipped) ** 0.5
        edges = np.array([[-np.inf, -1 + 1 / 255], [0.2 - 1 / 255, 0.2 + 1 / 255],
                          [1 - 1 / 255, np.inf]])  # fmt: skip
        edges[1] += float(x_0[1, 0]) - 0.2
        mass = np.diff(norm.cdf(edges, np.asarray(said), std))[:, 0]
        np.testing.assert_allclose(bound.reconstruction, -np.log2(mass), rtol=1e-6)


def test_fewer_steps_are_a_looser_bound_and_the_true_variance_is_the_tightest():
    schedule = schedules.cosine(60)
    x_0, denoise = images(std=0.5), gaussian_denoiser(schedule, 0.1, 0.5)
    fixed = []
    for stride in (1, 28):
        # Subsets of each other with one last stretch, so that the reconstructions are the same.
        grid = grids.from_times(schedule, np.append(np.arange(60, 2, -stride), [2, 1]))
        mixes = [np.append(np.full(grid.steps - 1, mix), 0.0) for mix in (0.0, 1.0)]
        *both, true = totals(denoise, x_0, grid=grid, mixes=[*mixes, exact_mix(grid, 0.5)])
        assert true < min(both)
        fixed.append(both)
    assert np.all(np.array(fixed[0]) < np.array(fixed[1])), fixed


@pytest.mark.parametrize("make", [schedules.linear_beta, schedules.cosine])
def test_whole_grids_lend_the_reconstruction_ddpms_variance(make):
    schedule = make(1000)
    table = step_table(grids.trailing(schedule, 1000))
    # beta-tilde_2 as Ho et al. 2020's code has it, from the betas alone.
    beta, alpha_bar = schedule.beta, np.cumprod(1 - schedule.beta)
    beta_tilde_2 = beta[2] * (1 - alpha_bar[1]) / (1 - alpha_bar[2])
    np.testing.assert_allclose(table.log_small[-1], np.log(beta_tilde_2), rtol=1e-9)
    np.testing.assert_allclose(table.log_large[-1], np.log(beta[1]), rtol=1e-9)


def test_a_fine_grid_keeps_half_of_the_last_noise_for_the_reconstruction():
    schedule = schedules.linear_log_snr(log_snr_max=9.0)
    table = step_table(grids.linspace(schedule, 500))
    noise = schedule(np.array(0.0)).noise_scale
    assert math.exp(table.log_small[-1]) == pytest.approx(noise**2 / 2)


@pytest.mark.parametrize(
    ("schedule", "variance"),
    [(schedules.linear_beta(1000), "beta_tilde"), (schedules.continuous_cosine(), "beta")],
)
def test_float32_keeps_four_digits_of_every_step(schedule, variance):
    grid = grids.from_times(schedule, np.arange(1000, 0, -1)) if schedule.discrete else (
        grids.linspace(schedule, 1000))  # fmt: skip

    def bound(dtype):
        x_0 = quantised(jnp.array([[-0.5, 0.9]], dtype))
        # Errors as a network has them: small where the noise is.
        denoise = lambda x_t, t, cond=None: dj.Estimates(  # noqa: E731
            0.875 * x_0, jnp.zeros_like(x_0)
        )
        return compiled(denoise, x_0, grid=grid, key=KEY, variance=variance)

    single = bound(jnp.float32)
    with jax.enable_x64(True):
        double = bound(jnp.float64)
    assert single.total.dtype == jnp.float32
    for a, b in zip(single, double, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_an_image_costs_the_same_in_any_batch():
    schedule = schedules.cosine(10)
    grid, x_0 = grids.trailing(schedule, 4), images(4, 6)
    denoise, keys = gaussian_denoiser(schedule), jax.random.split(KEY, 4)
    whole = jax.jit(lambda x, k: vlb(denoise, x, grid=grid, key=k))(x_0, keys)
    part = compiled(denoise, x_0[1:3], grid=grid, key=keys[1:3])
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_allclose(a[..., 1:3], b, rtol=1e-5)


def test_one_step_is_a_prior_and_a_reconstruction():
    schedule = schedules.cosine(10)
    bound = compiled(
        gaussian_denoiser(schedule), images(3, 6), grid=grids.trailing(schedule, 1), key=KEY
    )
    assert bound.steps.shape == (0, 3) and np.isfinite(bound.total).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variance": "big"}, "'learned', not 'big'"),
        ({"variance": "learned"}, "variance='learned' needs a denoiser with a variance_mix"),
        ({"grid": grids.stop_before_clean(grids.trailing(FLOW, 4))}, "ends at clean data"),
        (
            {"x_0": jnp.zeros((2, 3), jnp.uint8)},
            r"x_0 of vlb must be a floating-point array .* uint8",
        ),
        ({"key": jax.random.split(KEY, 3)}, r"one such key an example, \(2,\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_calls_are_refused(change, message):
    options = {"x_0": jnp.zeros((2, 3)), "grid": grids.trailing(FLOW, 4), "key": KEY} | change
    with pytest.raises((ValueError, TypeError), match=message):
        vlb(gaussian_denoiser(FLOW), **options)
