"""The continuous bound on one pixel of a known law: with the exact denoiser it is -log p(x)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import diffjax as dj
from diffjax import categorical, grids, learned_schedules, schedules
from diffjax.likelihood import vdm
from diffjax.likelihood.vlb import vlb

LAW = np.array([0.1, 0.55, 0.05, 0.3])
LEVELS = len(LAW)
VALUES = np.linspace(-1, 1, LEVELS)
WIDE = {"log_snr_min": -12.0, "log_snr_max": 9.0}
TIMES, DRAWS = 100, 1600


def exact_denoiser(schedule):
    """E[x_0 | x_t] under LAW, by Bayes' rule over the levels in full."""

    def denoise(x_t, t, cond=None):
        scales = dj.process.scales_like(schedule, t, x_t)
        log_p = jnp.log(LAW) - jnp.square(
            (x_t[..., None] - scales.signal_scale[..., None] * VALUES)
            / scales.noise_scale[..., None]
        ) / 2  # fmt: skip
        x_0 = (jax.nn.softmax(log_p) * VALUES).sum(-1)
        return dj.Estimates(x_0, dj.parametrisations.eps_from_x0(x_t, x_0, scales))

    return denoise


def law_decoder(scales):
    """log p(x | x_0) under LAW: the network's distribution, were it to know LAW."""

    def decode(x, x_0):
        logits = jnp.broadcast_to(jnp.log(LAW), (*x.shape[:-1], LEVELS))
        return categorical.log_prob(logits, x_0, x_0=x, scales=scales)

    return decode


def parts_of_each_level(schedule, *, knows_law=True):
    """The bound of each level: t at the middles of even parts, eps at the normal's quantiles.

    So the means are sums of a midpoint rule, with nothing random in them.
    """
    eps = norm.ppf((np.arange(DRAWS) + 0.5) / DRAWS)
    eps = jnp.broadcast_to(jnp.asarray(eps, jnp.float32)[:, None], (LEVELS * TIMES, DRAWS, 1))
    x = jnp.repeat(jnp.asarray(VALUES, jnp.float32), TIMES)[:, None, None] * jnp.ones((DRAWS, 1))
    t = jnp.tile((jnp.arange(TIMES) + 0.5) / TIMES, LEVELS)
    bound = jax.jit(
        lambda x, t, eps: vdm.vdm_bound(
            exact_denoiser(schedule), x, schedule=schedule, t=t, eps=eps, eps_0=eps[:, ::-1],
            decoder=law_decoder if knows_law else partial(vdm.level_decoder, levels=LEVELS),
        )
    )(x, t, eps)  # fmt: skip
    return jax.tree.map(lambda part: np.asarray(part).reshape(LEVELS, TIMES).mean(1), bound)


SCHEDULES = {
    "linear": schedules.linear_log_snr(**WIDE),
    "cosine": schedules.continuous_cosine(**WIDE),
    "network": learned_schedules.as_schedule(
        form := learned_schedules.network(features=8, **WIDE), form.init(jax.random.key(5))
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_with_the_exact_denoiser_the_bound_is_the_likelihood_of_each_level(name):
    # And of whatever schedule between the ends: the mean of the diffusion term is the same.
    bound = parts_of_each_level(SCHEDULES[name])
    np.testing.assert_allclose(bound.total, -np.log2(LAW), atol=0.006)
    np.testing.assert_allclose(
        bound.total, bound.prior + bound.reconstruction + bound.diffusion, rtol=1e-5
    )
    assert np.all(bound.diffusion > 0.5) and np.all(np.abs(bound.prior) < 1e-4)


def test_a_start_with_more_noise_moves_bits_to_the_reconstruction():
    noisy = parts_of_each_level(schedules.linear_log_snr(log_snr_min=-12.0, log_snr_max=2.0))
    np.testing.assert_allclose(noisy.total, -np.log2(LAW), atol=0.006)
    assert np.all(noisy.reconstruction > 0.05)
    # A decoder that knows nothing of the law is a looser bound, on the law's own average.
    flat = parts_of_each_level(
        schedules.linear_log_snr(log_snr_min=-12.0, log_snr_max=2.0), knows_law=False
    )
    gap = LAW @ (flat.total - noisy.total)
    assert gap > 0.01
    np.testing.assert_allclose(flat.diffusion, noisy.diffusion)
    # Its reconstruction is a quadrature of Bayes' rule with even levels.
    signal, noise = schedules.variance_preserving(np.float64(2.0))
    for x, found in zip(VALUES, flat.reconstruction, strict=True):
        x_0 = signal * x + noise * np.linspace(-9, 9, 4001)
        density = norm.pdf(x_0, signal * x, noise)
        log_p = np.log2(density / norm.pdf(x_0[:, None], signal * VALUES, noise).sum(1))
        assert found == pytest.approx(-np.trapezoid(density * log_p, x_0), abs=2e-3)


def test_the_discrete_bound_of_many_steps_agrees():
    schedule, steps = SCHEDULES["linear"], 100
    x_0 = jnp.asarray(VALUES, jnp.float32)[:, None, None] * jnp.ones((10_000, 1))
    found = jax.jit(
        lambda x_0: vlb(
            exact_denoiser(schedule), x_0, grid=grids.linspace(schedule, steps),
            key=jax.random.key(0), levels=LEVELS,
        ).total
    )(x_0)  # fmt: skip
    # Steps are of one length d in log-SNR, and the denoiser sees their noisier end: an integral of
    # the error over SNR became a sum that is (exp(d) - 1) / d times as large.
    d = 21.0 / (steps - 1)
    wanted = np.expm1(d) / d * parts_of_each_level(schedule).total
    np.testing.assert_allclose(found, wanted, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("log_snr", [-8.0, -2.0, 1.0])
def test_prior_is_a_divergence_by_quadrature(log_snr):
    signal, noise = schedules.variance_preserving(np.float64(log_snr))
    x = jnp.array([[-1.0, 0.2], [0.7, 0.7]])
    found = vdm.prior_term(x, jnp.float32(log_snr))
    assert found.shape == (2,)

    def divergence(x):
        z = signal * x + noise * np.linspace(-12, 12, 20_001)
        q, log_q = norm.pdf(z, signal * x, noise), norm.logpdf(z, signal * x, noise)
        return np.trapezoid(q * (log_q - norm.logpdf(z)), z)

    exact = [np.mean([divergence(float(v)) for v in row]) for row in x]
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("levels", [3, 256])
def test_the_decoder_is_a_distribution_over_levels(levels):
    scales = dj.Scales(*(jnp.float32(s) for s in schedules.variance_preserving(np.float64(7.0))))
    x_0 = jax.random.normal(jax.random.key(0), (2, 5, 3))
    decode = vdm.level_decoder(scales, levels=levels)
    log_p = jax.vmap(lambda x: decode(jnp.full_like(x_0, x), x_0))(jnp.linspace(-1, 1, levels))
    assert log_p.shape == (levels, 2, 5, 3)
    np.testing.assert_allclose(np.exp(np.float64(log_p)).sum(0), 1, atol=1e-4)


def test_the_terms_integrand_is_a_squared_error_of_eps():
    # fall / 2 times it, so that bits do not depend on which of the two a network predicts.
    x, said, eps = jax.random.normal(jax.random.key(0), (3, 4, 6))
    log_snr, fall = jnp.array([-5.0, 0.0, 3.0, 10.0]), jnp.array([1.0, 20.0, 3.0, 0.5])
    scales = dj.Scales(*(s[:, None] for s in schedules.variance_preserving(log_snr)))
    x_t = scales.signal_scale * x + scales.noise_scale * eps
    error = dj.parametrisations.eps_from_x0(x_t, said, scales) - eps
    np.testing.assert_allclose(
        vdm.diffusion_term(x, said, log_snr=log_snr, fall=fall),
        fall / 2 * jnp.square(error).mean(1), rtol=1e-3,
    )  # fmt: skip


def test_draws_per_unit_of_log_snr_do_not_depend_on_the_schedule():
    x, eps = jax.random.normal(jax.random.key(0), (2, 5, 4))
    levels = jnp.linspace(-6.0, 6.0, 5)
    draws = [
        vdm.diffusion_draw(
            exact_denoiser(schedule), x, schedule=schedule, t=schedule.time(levels), eps=eps
        )
        for schedule in (SCHEDULES["linear"], SCHEDULES["cosine"])
    ]
    np.testing.assert_allclose(draws[0].log_snr, draws[1].log_snr, atol=1e-3)
    assert not np.allclose(draws[0].fall, draws[1].fall)
    each = [draw.value / draw.fall for draw in draws]
    np.testing.assert_allclose(each[0], each[1], rtol=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schedule": schedules.cosine(10)},
            "of continuous time: for a discrete schedule take vlb",
        ),
        ({"eps": jnp.zeros((2, 1))}, r"eps of shape \(2, 1\) does not fit x of shape \(2, 3\)"),
        ({"eps_0": jnp.zeros((1, 3))}, r"eps_0 of shape \(1, 3\) does not fit x of shape"),
        ({"t": jnp.zeros(())}, r"t of shape \(\) must have the axes \(batch,\)"),
        ({"t": jnp.zeros((2, 1))}, r"t of shape \(2, 1\) must have the axes \(batch,\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_calls_are_refused(change, message):
    x = jnp.zeros((2, 3))
    options = {"schedule": SCHEDULES["linear"], "t": jnp.zeros(2), "eps": x, "eps_0": x} | change
    with pytest.raises(ValueError, match=message):
        vdm.vdm_bound(exact_denoiser(SCHEDULES["linear"]), x, **options)
