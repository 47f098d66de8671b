"""The likelihood by the ODE: Gaussians and mixtures whose density SciPy knows, and quadrature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

import diffjax as dj
from diffjax import grids, samplers, schedules
from diffjax.likelihood import dequantisation
from diffjax.likelihood.ode import OdeSolver, ode_bits_per_dim, ode_log_likelihood
from tests.sampling.samplers.known import gaussian_denoiser, mixture_denoiser

KEY = jax.random.key(0)
COSINE = schedules.continuous_cosine()
MU = np.array([0.4, -0.2])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.25]])
TURN = np.linalg.eigh(COVARIANCE)
CENTRES, WIDTH = (-0.8, 0.5), 0.1


def correlated_denoiser(schedule):
    """E[x_0 | x_t] of N(MU, COVARIANCE) data: regression along each axis."""
    values, axes = TURN

    def denoise(x_t, t, cond=None):
        signal, noise = schedule(t)
        white = (x_t - signal * MU) @ axes / (signal**2 * values + noise**2) @ axes.T
        return dj.Estimates(MU + signal * white @ COVARIANCE, noise * white)

    return denoise


def model(schedule, t_start):
    """The law of x at t_start when x_T is N(0, noise_T^2 I): the flow is affine along each axis."""
    values, axes = TURN
    (signal, noise), (signal_T, noise_T) = schedule(np.float64(t_start)), schedule(1.0 * schedule.T)
    ratio = np.sqrt((signal**2 * values + noise**2) / (signal_T**2 * values + noise_T**2))
    move = (axes * ratio) @ axes.T
    return scipy.stats.multivariate_normal(
        signal * MU - move @ (signal_T * MU), noise_T**2 * move @ move
    )


@pytest.mark.parametrize(
    ("schedule", "t_start"),
    [
        (schedules.linear_beta(1000), None),
        (schedules.cosine(100), 2.5),
        (COSINE, None),
        (schedules.linear_log_snr(log_snr_min=-6), 0.1),
        (schedules.rectified_flow(), None),
        (schedules.karras(), None),
    ],
    ids=["linear", "cosine, between steps", "continuous cosine", "linear log-SNR", "flow", "edm"],
)
def test_gaussian_data_have_scipys_density(schedule, t_start):
    start = schedule.t_min if t_start is None else t_start
    signal, noise = schedule(np.float64(start))
    x = signal * MU + np.array([[0.1, -0.3], [1.2, 0.4], [-0.5, -0.6]])
    with jax.enable_x64(True):
        result = jax.jit(
            lambda x: ode_log_likelihood(
                correlated_denoiser(schedule), x, schedule=schedule, t_start=t_start,
                solver=OdeSolver("exact", rtol=1e-7, atol=1e-7),
            )
        )(jnp.asarray(x))  # fmt: skip
    assert result.finished and result.evaluations < 1500
    np.testing.assert_allclose(result.log_prob, model(schedule, start).logpdf(x), atol=2e-6)
    np.testing.assert_allclose(result.log_prob, result.prior + result.divergence, rtol=1e-12)
    # The data's own density differs by what signal the schedule leaves at T.
    marginal = scipy.stats.multivariate_normal(
        signal * MU, signal**2 * COVARIANCE + noise**2 * np.eye(2)
    )
    np.testing.assert_allclose(result.log_prob, marginal.logpdf(x), atol=0.15)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinsons_divergence_is_unbiased(probe):
    x, n = np.array([0.3, 0.1]), 1000

    @jax.jit
    def log_prob(x, keys):
        return ode_log_likelihood(
            correlated_denoiser(COSINE), x, schedule=COSINE, key=keys,
            solver=OdeSolver(probe=probe, rtol=1e-5, atol=1e-5),
        ).log_prob  # fmt: skip

    with jax.enable_x64(True):
        xs = jnp.broadcast_to(x, (n, 2)) + jnp.where(jnp.arange(n)[:, None] < n - 2, 0.0, 0.5)
        keys = jax.random.split(KEY, n)
        drawn = np.asarray(log_prob(xs, keys))
        backwards = np.asarray(log_prob(xs[::-1], keys[::-1]))
    # An example has its own probe, wherever in the batch it stands.
    np.testing.assert_allclose(backwards[::-1], drawn, atol=1e-9)
    drawn, exact = drawn[: n - 2], model(COSINE, 0.0).logpdf(x)
    assert drawn.std() > 0.1
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / np.sqrt(n)


@pytest.mark.parametrize(
    ("divergence", "shape"), [("hutchinson", (3, 2, 3, 3, 1)), ("exact", (3, 18))]
)
def test_float32_keeps_the_likelihood_of_thin_data(divergence, shape):
    # One in three dimensions is always 0.3, so that only noise of 1e-3 gives it a density.
    schedule = schedules.linear_log_snr()
    std = np.resize([0.0, 0.05, 0.8], shape[1:]).astype(np.float32)
    signal, noise = schedule(0.0)
    spread = np.sqrt((signal * std) ** 2 + noise**2)
    x = signal * 0.3 + spread * np.random.default_rng(1).normal(size=shape)
    x = x.astype(np.float32)
    result = jax.jit(
        lambda x: ode_log_likelihood(
            gaussian_denoiser(schedule, mean=0.3, std=std), x, schedule=schedule, key=KEY,
            solver=OdeSolver(divergence),
        )
    )(x)  # fmt: skip
    signal_T, noise_T = schedule(1.0)
    spread_T = np.sqrt((signal_T * std) ** 2 + noise_T**2)
    # A sign's square is 1, so that the probe of a diagonal Jacobian is exact.
    law = scipy.stats.norm(
        signal * 0.3 - signal_T * 0.3 * spread / spread_T, spread * noise_T / spread_T
    )
    exact = law.logpdf(x.astype(np.float64)).reshape(3, -1).sum(1)
    assert result.latent.dtype == jnp.float32 and result.latent.shape == shape
    np.testing.assert_allclose(result.log_prob / 18, exact / 18, atol=3e-4)
    assert result.evaluations < 150


@functools.cache
def mixture_solution(tolerance):
    """(x, OdeLikelihood) of the noised mixture over a range that holds all of its mass."""
    x = np.linspace(-1.8, 1.5, 221)[:, None]
    with jax.enable_x64(True):
        return x, jax.jit(
            lambda x: ode_log_likelihood(
                mixture_denoiser(COSINE, CENTRES, WIDTH), x, schedule=COSINE,
                solver=OdeSolver("exact", rtol=tolerance, atol=tolerance),
            )
        )(jnp.asarray(x))  # fmt: skip


def mixture_log_prob(x):
    signal, noise = COSINE(0.0)
    spread = np.hypot(signal * WIDTH, noise)
    each = [scipy.stats.norm.pdf(x, signal * centre, spread) for centre in CENTRES]
    return np.log(np.mean(each, axis=0))


def test_a_mixture_has_its_own_density_which_integrates_to_one():
    x, result = mixture_solution(1e-6)
    log_prob = np.asarray(result.log_prob)
    # Between the centres, and far out, the density is that of a prior with no signal at T.
    likely = mixture_log_prob(x[:, 0]) > -8
    np.testing.assert_allclose(log_prob[likely], mixture_log_prob(x[likely, 0]), atol=5e-3)
    assert scipy.integrate.simpson(np.exp(log_prob), x=x[:, 0]) == pytest.approx(1, abs=1e-5)


def test_the_error_falls_with_the_tolerance():
    x, best = mixture_solution(1e-6)
    # The point halfway between the centres is unstable: no tolerance is small enough for it.
    likely = mixture_log_prob(x[:, 0]) > -4
    errors, evaluations = [], []
    for tolerance in (1e-2, 1e-4):
        _, result = mixture_solution(tolerance)
        errors.append(np.abs(result.log_prob - best.log_prob)[likely].max())
        evaluations.append(int(result.evaluations))
    assert errors[0] < 0.1 and errors[1] < 2e-3 and errors[1] < errors[0] / 10
    assert evaluations[0] < evaluations[1] < best.evaluations


def test_a_sampler_leads_from_the_latent_back_to_x():
    x, result = mixture_solution(1e-6)
    some = np.flatnonzero(mixture_log_prob(x[:, 0]) > -2)[::10]
    times = np.append(COSINE.time(np.linspace(-15, 15, 300))[1:-1], 0.0)
    with jax.enable_x64(True):
        path = samplers.heun(
            mixture_denoiser(COSINE, CENTRES, WIDTH), result.latent[some],
            grid=grids.from_times(COSINE, np.append(1.0, times)), keep_trajectory=True,
        ).trajectory  # fmt: skip
    np.testing.assert_allclose(path[-2], x[some], atol=2e-3)


def test_an_examples_density_does_not_depend_on_the_batch():
    x, together = mixture_solution(1e-4)
    with jax.enable_x64(True):
        alone = jax.jit(
            lambda x: ode_log_likelihood(
                mixture_denoiser(COSINE, CENTRES, WIDTH),
                x,
                schedule=COSINE,
                solver=OdeSolver("exact"),
            )
        )(jnp.asarray(x[75:76]))
    np.testing.assert_allclose(alone.log_prob[0], together.log_prob[75], atol=1e-3)


def test_evaluations_are_counted_and_too_many_give_nan():
    calls, flow = [], schedules.rectified_flow()

    def counted(x_t, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return gaussian_denoiser(flow)(x_t, t)

    def solve(denoise, max_steps):
        return jax.jit(
            lambda x: ode_log_likelihood(
                denoise, x, schedule=flow, solver=OdeSolver("exact", max_steps=max_steps)
            )
        )(jnp.ones((2, 1)))

    done = solve(counted, 1000)
    jax.effects_barrier()
    assert done.finished and len(calls) == done.evaluations
    tries = (int(done.evaluations) - 1) // 6
    given_up = solve(gaussian_denoiser(flow), tries - 1)
    assert not given_up.finished and given_up.evaluations == 1 + 6 * (tries - 1)
    for value in (given_up.log_prob, given_up.prior, given_up.divergence, given_up.latent):
        assert np.isnan(value).all()


def test_a_network_that_is_not_finite_is_given_up_soon():
    flow = schedules.rectified_flow()
    broken = lambda x, t, cond=None: dj.Estimates(x * jnp.nan, x * jnp.nan)  # noqa: E731
    solve = functools.partial(ode_log_likelihood, schedule=flow, solver=OdeSolver("exact"))
    result = jax.jit(lambda x: solve(broken, x))(jnp.ones((2, 1)))
    assert not result.finished and np.isnan(result.log_prob).all() and result.evaluations < 100


def test_bits_per_dim_bound_the_mass_of_a_bin_and_more_samples_tighten_the_bound():
    # Bins so wide that the uniform q is far from the posterior.
    levels, n, level = 4, 400, 1 / 3
    mean, std = 0.0, 0.2
    signal, noise = COSINE(0.0)
    law = scipy.stats.norm(signal * mean, np.hypot(signal * std, noise))
    width = 2 / 3 * signal
    low, high = signal * level - width / 2, signal * level + width / 2
    mass = -np.log2(law.cdf(high) - law.cdf(low))
    cross_entropy = scipy.integrate.quad(lambda z: -law.logpdf(z) / width, low, high)[0]
    one_sample = cross_entropy / np.log(2) - np.log2(width)
    assert one_sample > mass + 0.5

    def bound(samples):
        return jax.jit(
            lambda x: ode_bits_per_dim(
                gaussian_denoiser(COSINE, mean, std), x, schedule=COSINE, key=KEY,
                dequantise=dequantisation.uniform(COSINE, levels=levels), samples=samples,
            )
        )(jnp.full((n, 1), level))  # fmt: skip

    one, many = bound(1), bound(15)
    assert one.finished and many.finished and many.evaluations > 10 * one.evaluations
    for result, expected, slack in ((one, one_sample, 0), (many, mass, 0.1)):
        bits = np.asarray(result.bits_per_dim, np.float64)
        assert bits.shape == (n,)
        error = 4 * bits.std() / np.sqrt(n) + 1e-3
        assert expected - error < bits.mean() < expected + error + slack


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": OdeSolver("half")}, "'hutchinson' or 'exact', not 'half'"),
        ({"solver": OdeSolver(probe="uniform")}, "'rademacher' or 'gaussian', not 'uniform'"),
        ({"solver": OdeSolver(rtol=0.0)}, "rtol and atol must be positive, not 0.0"),
        ({"solver": OdeSolver(atol=float("nan"))}, "positive, not 0.0001 and nan"),
        ({"solver": OdeSolver(max_steps=0)}, "max_steps must be at least 1, not 0"),
        ({"t_start": 1.0}, r"t_start must lie in \[t_min, T\), \[0.001, 1.0\) here, not 1.0"),
        ({"t_start": 0.0}, r"\[0.001, 1.0\) here, not 0.0"),
        ({"key": None}, "draws probes: pass key="),
        ({"key": jax.random.split(KEY, 3)}, r"one such key an example, \(2,\)"),
        ({"x": jnp.ones((2, 1), int)}, r"x of .* must be a floating-point array .* int32"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_calls_are_refused(options, message):
    flow = schedules.rectified_flow()
    options = {"key": KEY, "x": jnp.ones((2, 1)), **options}
    with pytest.raises((ValueError, TypeError), match=message):
        ode_log_likelihood(gaussian_denoiser(flow), options.pop("x"), schedule=flow, **options)


def test_no_samples_are_refused():
    flow = schedules.rectified_flow()
    with pytest.raises(ValueError, match="samples must be at least 1, not 0"):
        ode_bits_per_dim(
            gaussian_denoiser(flow), jnp.ones((2, 1)), schedule=flow, key=KEY, samples=0,
            dequantise=dequantisation.uniform(flow),
        )  # fmt: skip
