"""The forward process: simulated chains, quadrature of Bayes' rule, float64 as the judge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import process, schedules

PAIRS = [
    pytest.param(schedules.linear_beta(1000), 499, 500, id="linear, neighbours"),
    pytest.param(schedules.linear_beta(1000), 100, 700, id="linear, far apart"),
    pytest.param(schedules.cosine(10), 1, 2, id="cosine, start"),
    pytest.param(schedules.cosine(10), 9, 10, id="cosine, end"),
    pytest.param(schedules.zero_terminal_snr(schedules.cosine(10)), 4, 10, id="zero snr"),
    pytest.param(schedules.continuous_cosine(), 0.3, 0.31, id="continuous cosine"),
    pytest.param(schedules.karras(), 0.2, 0.8, id="edm"),
    pytest.param(schedules.rectified_flow(), 0.25, 0.5, id="flow"),
    pytest.param(schedules.rectified_flow(), 0.5, 1.0, id="flow, to pure noise"),
]


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        (schedules.linear_beta(8), range(9)),
        (schedules.cosine(8), range(9)),
        (schedules.rectified_flow(), [0.0, 0.1, 0.4, 0.7, 1.0]),
        (schedules.karras(), [0.0, 0.3, 0.6, 1.0]),
    ],
    ids=["linear", "cosine", "flow", "edm"],
)
def test_composed_steps_reach_the_marginal(schedule, times):
    n, x_0 = 200_000, 0.7
    times = jnp.asarray(list(times))
    first = schedule(times[0])

    def step(x, inputs):
        s, t, key = inputs
        eps = jax.random.normal(key, x.shape)
        return process.q_step(schedule, x, s=s, t=t, eps=eps), None

    start, *keys = jax.random.split(jax.random.key(1), len(times))
    x = first.signal_scale * x_0 + first.noise_scale * jax.random.normal(start, (n,))
    x, _ = jax.lax.scan(step, x, (times[:-1], times[1:], jnp.stack(keys)))
    x = np.asarray(x, np.float64)
    closed = np.asarray(
        process.q_sample(schedule, jnp.full(2, x_0), t=times[-1], eps=jnp.array([0.0, 1.0]))
    )
    mean, std = closed[0], closed[1] - closed[0]
    # Four standard errors of a mean and of a standard deviation.
    assert abs(x.mean() - mean) < 4 * std / np.sqrt(n)
    assert abs(x.std() - std) < 4 * std / np.sqrt(2 * n)


def normal_pdf(x, mean, std):
    return np.exp(-(((x - mean) / std) ** 2) / 2) / std


@pytest.mark.parametrize(("schedule", "s", "t"), PAIRS)
def test_posterior_is_bayes_rule(schedule, s, t):
    x_0, x_t = 0.6, -0.4
    (signal_s, noise_s), (signal_t, noise_t) = schedule(s), schedule(t)
    prior_mean, prior_std = signal_s * x_0, noise_s
    x_s = prior_mean + prior_std * np.linspace(-12, 12, 400_001)
    # q(x_t | x_s) from what a step does to a sample: no noise gives its mean, unit noise its std.
    with jax.enable_x64(True):
        no_noise, unit = (
            np.asarray(process.q_step(schedule, jnp.asarray(x_s), s=s, t=t, eps=jnp.asarray(eps)))
            for eps in (np.zeros_like(x_s), np.ones_like(x_s))
        )
    x_t = signal_t * x_0 + x_t * noise_t
    density = normal_pdf(x_s, prior_mean, prior_std) * normal_pdf(x_t, no_noise, unit - no_noise)
    density /= density.sum()
    mean = (density * x_s).sum()
    variance = (density * (x_s - mean) ** 2).sum()

    posterior = process.q_posterior(
        schedule, jnp.full((1, 1), x_t), x_0=jnp.full((1, 1), x_0), s=jnp.asarray(s), t=t
    )
    np.testing.assert_allclose(posterior.mean[0, 0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(posterior.variance, variance, rtol=2e-4)
    np.testing.assert_allclose(posterior.log_variance, np.log(variance), atol=2e-4)


@pytest.mark.parametrize(("schedule", "s", "t"), PAIRS)
def test_posterior_over_the_marginal_at_t_is_the_marginal_at_s(schedule, s, t):
    of_x_t, of_x_0, variance = process.posterior_coefficients(schedule(s), schedule(t))
    (signal_s, noise_s), (signal_t, noise_t) = schedule(s), schedule(t)
    np.testing.assert_allclose(of_x_t * signal_t + of_x_0, signal_s, rtol=1e-12)
    np.testing.assert_allclose((of_x_t * noise_t) ** 2 + variance, noise_s**2, rtol=1e-9)


@pytest.mark.parametrize("make", [schedules.linear_beta, schedules.cosine, schedules.sigmoid])
def test_float32_posterior_keeps_four_digits_at_every_step(make):
    schedule = make(1000)
    t = np.arange(2, 1001)
    exact = process.posterior_coefficients(schedule(t - 1), schedule(t))
    single = jax.jit(lambda t: process.posterior_coefficients(schedule(t - 1), schedule(t)))(
        jnp.asarray(t)
    )
    for a, b in zip(single, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-4)
    mean_error = np.abs(single[0] - exact[0]) + np.abs(single[1] - exact[1])
    assert mean_error.max() < 1e-5


def test_ddpm_step_is_the_case_of_neighbours():
    diffusers = pytest.importorskip("diffusers", reason="a second implementation of DDPM's step")
    theirs = diffusers.DDPMScheduler(1000, clip_sample=False, prediction_type="sample")
    torch = pytest.importorskip("torch", reason="diffusers needs torch")
    x_t, x_0 = 0.3, -0.8
    schedule = schedules.linear_beta(1000)
    for t in (2, 10, 500, 1000):
        ours = process.q_posterior(
            schedule, jnp.full((1,), x_t), x_0=jnp.full((1,), x_0), s=t - 1, t=t
        )
        theirs_variance = float(theirs._get_variance(t - 1))
        np.testing.assert_allclose(ours.variance, theirs_variance, rtol=1e-3)
        # Both means of one draw: their noise is taken off by its seed.
        generator = torch.Generator().manual_seed(0)
        step = theirs.step(
            torch.full((1, 1), x_0), t - 1, torch.full((1, 1), x_t), generator=generator
        ).prev_sample
        noise = torch.randn((1, 1), generator=torch.Generator().manual_seed(0))
        their_mean = float(step - theirs_variance**0.5 * noise)
        np.testing.assert_allclose(ours.mean[0], their_mean, rtol=2e-4, atol=1e-5)


def test_log_variance_is_finite_at_the_first_step():
    x = jnp.ones((2, 3))
    schedule = schedules.linear_beta(1000)
    first = process.q_posterior(schedule, x, x_0=x, s=0, t=1)
    second = process.q_posterior(schedule, x, x_0=x, s=1, t=2)
    assert first.variance == 0
    np.testing.assert_allclose(first.log_variance, second.log_variance, rtol=1e-5)
    np.testing.assert_allclose(first.mean, x, rtol=1e-6)
    flow = process.q_posterior(schedules.rectified_flow(), x, x_0=x, s=0.0, t=0.5)
    assert flow.log_variance == pytest.approx(np.log(1e-20))
    one_step = process.q_posterior(schedules.cosine(1), x, x_0=x, s=0, t=1)
    assert np.isfinite(one_step.log_variance)


@pytest.mark.parametrize(
    ("schedule", "s", "t"),
    [(schedules.linear_beta(1000), 0, 1), (schedules.linear_beta(1000), 999, 1000),
     (schedules.zero_terminal_snr(schedules.cosine(10)), 9, 10),
     (schedules.rectified_flow(), 0.0, 1.0), (schedules.rectified_flow(), 0.5, 1.0)],
)  # fmt: skip
def test_gradients_are_finite(schedule, s, t):
    def total(x_t, x_0):
        posterior = process.q_posterior(schedule, x_t, x_0=x_0, s=s, t=t)
        moved = process.q_sample(schedule, x_0, t=t, eps=x_t)
        return (posterior.mean + posterior.log_variance + posterior.variance + moved).sum()

    for gradient in jax.grad(total, argnums=(0, 1))(jnp.ones((2, 2)), jnp.ones((2, 2))):
        assert np.isfinite(gradient).all()


def test_times_may_differ_between_examples():
    schedule = schedules.linear_beta(100)
    x = jnp.arange(24.0).reshape(2, 3, 4, 1) / 24
    t = jnp.array([7, 80])
    together = process.q_posterior(schedule, x, x_0=x + 1, s=t - 1, t=t)
    noisy = dj.q_sample(schedule, x, t=t, eps=x)
    stepped = dj.q_step(schedule, x, s=t - 1, t=t, eps=x)
    assert together.variance.shape == (2, 1, 1, 1)
    for i in range(2):
        alone = process.q_posterior(
            schedule, x[i : i + 1], x_0=x[i : i + 1] + 1, s=t[i] - 1, t=t[i]
        )
        np.testing.assert_allclose(together.mean[i], alone.mean[0], rtol=1e-6)
        np.testing.assert_allclose(
            noisy[i], dj.q_sample(schedule, x[i], t=t[i], eps=x[i]), rtol=1e-6
        )
        np.testing.assert_allclose(
            stepped[i], dj.q_step(schedule, x[i], s=t[i] - 1, t=t[i], eps=x[i]), rtol=1e-6
        )


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1)])
@pytest.mark.usefixtures("unchecked")
def test_times_of_another_shape_are_refused(shape):
    x = jnp.zeros((2, 4, 4, 1))
    with pytest.raises(ValueError, match=r"a scalar or one an example, \(2,\)"):
        dj.q_sample(schedules.cosine(10), x, t=jnp.ones(shape, int), eps=x)
