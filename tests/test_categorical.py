"""Distributions over levels: Bayes' rule by brute force in float64, and simulated data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import diffjax as dj
from diffjax import categorical, losses, schedules
from diffjax import parametrisations as p

LEVELS = 256
VALUES = np.linspace(-1, 1, LEVELS)
LOG_SNRS = (-15.0, -6.0, 0.0, 5.0, 9.0, 13.3, 25.0)


def float64(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def drawn(log_snr, *, shape=(64, 3), levels=LEVELS, spread=3.0):
    """Logits, data on the levels, and its noisy form, all float32, with the scales."""
    rng = np.random.default_rng(0)
    scales = dj.Scales(
        *(jnp.float32(s) for s in schedules.variance_preserving(np.float64(log_snr)))
    )
    logits = jnp.asarray(spread * rng.standard_normal((*shape, levels)), jnp.float32)
    x_0 = jnp.asarray(np.linspace(-1, 1, levels)[rng.integers(0, levels, shape)], jnp.float32)
    x_t = scales.signal_scale * x_0 + scales.noise_scale * jnp.asarray(
        rng.standard_normal(shape), jnp.float32
    )
    return logits, x_0, x_t, scales


def bayes(logits, x_t, scales):
    """log p_k: the prior times the density of x_t at each level, normalised. (..., levels)."""
    logits, x_t, signal, noise = float64(logits, x_t, *scales)
    levels = np.linspace(-1, 1, logits.shape[-1])
    joint = special.log_softmax(logits, -1) + stats.norm.logpdf(
        x_t[..., None], signal * levels, noise
    )
    return joint - special.logsumexp(joint, -1, keepdims=True)


def flat(logits):
    return logits.reshape(*logits.shape[:-2], -1)


@pytest.mark.parametrize("log_snr", LOG_SNRS)
def test_estimate_and_probability_are_bayes_rule_by_brute_force(log_snr):
    logits, x_0, x_t, scales = drawn(log_snr)
    exact = bayes(logits, x_t, scales)
    mean = (np.exp(exact) * VALUES).sum(-1)
    found = categorical.categorical().estimates(flat(logits), x_t, scales)
    np.testing.assert_allclose(found.x_0, mean, atol=2e-5)
    rebuilt = scales.signal_scale * found.x_0 + scales.noise_scale * found.eps
    np.testing.assert_allclose(rebuilt, x_t, atol=1e-5)
    number = np.round((np.asarray(x_0) + 1) * (LEVELS - 1) / 2).astype(int)
    at_x_0 = np.take_along_axis(exact, number[..., None], -1)[..., 0]
    log_p = categorical.log_prob(flat(logits), x_t, x_0=x_0, scales=scales)
    # What float32 can say of a distance that is counted in noise scales.
    np.testing.assert_allclose(log_p, at_x_0, atol=1e-4 + 1e-6 * np.exp(log_snr / 2), rtol=1e-5)


@pytest.mark.parametrize("log_snr", [-8.0, 0.0, 6.0, 10.0])
@pytest.mark.parametrize("which", ["mean", "log_prob"])
def test_gradients_are_those_of_a_naive_form_in_float64(log_snr, which):
    levels = 64  # spaced so that at log-SNR 6 to 10 several of them are in doubt
    logits, x_0, x_t, scales = drawn(log_snr, shape=(4, 2), levels=levels)
    number = np.round((np.asarray(x_0) + 1) * (levels - 1) / 2).astype(int)
    slopes = np.random.default_rng(1).standard_normal(x_t.shape)

    def ours(logits, x_t, signal, noise):
        scales = dj.Scales(signal, noise)
        if which == "mean":
            out = categorical.categorical(levels).estimates(flat(logits), x_t, scales).x_0
        else:
            out = categorical.log_prob(flat(logits), x_t, x_0=x_0, scales=scales)
        return (jnp.asarray(slopes, x_t.dtype) * out).sum()

    def naive(logits, x_t, signal, noise):
        off = (x_t[..., None] - signal * jnp.linspace(-1, 1, levels)) / noise
        log_p = jax.nn.log_softmax(jax.nn.log_softmax(logits) - off**2 / 2)
        if which == "mean":
            out = (jnp.exp(log_p) * jnp.linspace(-1, 1, levels)).sum(-1)
        else:
            out = jnp.take_along_axis(log_p, number[..., None], -1)[..., 0]
        return (slopes * out).sum()

    found = jax.jit(jax.grad(ours, argnums=(0, 1, 2, 3)))(logits, x_t, *scales)
    with jax.enable_x64(True):
        exact = jax.jit(jax.grad(naive, argnums=(0, 1, 2, 3)))(*float64(logits, x_t, *scales))
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize(("signal", "noise"), [(0.0, 1.0), (1.0, 0.0)])
def test_without_signal_or_noise_all_is_finite_and_in_range(signal, noise):
    logits, x_0, x_t, _ = drawn(0.0, spread=50.0)
    scales = dj.Scales(jnp.float32(signal), jnp.float32(noise))
    x_t = signal * x_0 + noise * x_t

    def total(logits, x_t):
        x = categorical.categorical().estimates(flat(logits), x_t, scales).x_0
        return x.sum() + categorical.log_prob(flat(logits), x_t, x_0=x_0, scales=scales).sum(), x

    grads, found = jax.grad(total, argnums=(0, 1), has_aux=True)(logits, x_t)
    assert np.abs(found).max() <= 1
    assert all(np.isfinite(g).all() for g in grads)
    if signal:
        np.testing.assert_allclose(found, x_0, atol=2e-7)
    else:  # the network's own mean
        np.testing.assert_allclose(
            found, (special.softmax(np.float64(logits), -1) * VALUES).sum(-1), atol=1e-4
        )


@pytest.mark.parametrize("log_snr", LOG_SNRS)
def test_estimates_stay_in_range_however_sure_the_network_is(log_snr):
    logits, _, x_t, scales = drawn(log_snr, spread=200.0)
    x_0 = categorical.categorical().estimates(flat(logits), 3 * x_t, scales).x_0
    assert np.abs(x_0).max() <= 1 and np.isfinite(x_0).all()


def test_with_the_datas_law_for_logits_the_estimate_is_the_conditional_mean():
    # Its definition: what is left of x_0 is orthogonal to every function of x_t. Three channels of
    # three laws, so that a mixed-up layout would show.
    n, levels, rng = 400_000, 5, np.random.default_rng(3)
    laws = rng.dirichlet(np.ones(levels), 3)
    values = np.linspace(-1, 1, levels)
    x_0 = np.stack([rng.choice(values, n, p=law) for law in laws], -1)
    scales = dj.Scales(jnp.float32(0.6), jnp.float32(0.8))
    x_t = 0.6 * x_0 + 0.8 * rng.standard_normal(x_0.shape)
    logits = jnp.broadcast_to(jnp.log(laws).ravel(), (n, 3 * levels))
    x_t = jnp.asarray(x_t, jnp.float32)
    left = x_0 - np.asarray(categorical.categorical(levels).estimates(logits, x_t, scales).x_0)
    assert left.std() > 0.3
    for function in (np.ones_like, np.sign, np.sin, np.square, lambda x: np.exp(-(x**2))):
        product = left * function(np.asarray(x_t, np.float64))
        assert np.all(np.abs(product.mean(0)) < 5 * product.std(0) / np.sqrt(n))


def test_each_channel_has_its_own_run_of_logits():
    shape = (2, 3, 4, 3)
    wanted = np.random.default_rng(0).integers(0, 7, shape)
    logits = 100.0 * jax.nn.one_hot(wanted, 7)
    noisy = dj.Scales(jnp.float32(0.0), jnp.float32(1.0))
    found = categorical.categorical(7).estimates(flat(logits), jnp.zeros(shape), noisy)
    np.testing.assert_array_equal(categorical.level_of(found.x_0, levels=7), wanted)


def test_levels_are_those_of_8_bit_images():
    images = np.arange(256, dtype=np.uint8)
    x_0 = images.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(categorical.level_values(), x_0, atol=1e-7)
    np.testing.assert_array_equal(categorical.level_of(jnp.asarray(x_0)), images)
    assert categorical.level_of(jnp.array([-1.2, 1.2])).tolist() == [0, 255]


def test_logits_are_trained_in_another_space_than_their_own():
    schedule = schedules.cosine(10)
    x_0 = jnp.linspace(-1, 1, 6).reshape(2, 3)
    call = dict(
        t=jnp.array([3, 7]), eps=x_0[::-1],
        prediction=dj.Prediction(schedule, categorical.categorical(4)),
    )  # fmt: skip
    network = lambda x, t, cond: jnp.zeros((2, 12))  # noqa: E731
    with pytest.raises(ValueError, match="no target of a squared error: set loss_target to x0"):
        losses.diffusion_loss(network, x_0, **call)
    assert np.isfinite(losses.diffusion_loss(network, x_0, target=p.x0, **call)).all()
    with pytest.raises(ValueError, match=r"returned \(2, 3\) for x_t of .*expected \(2, 12\)"):
        losses.diffusion_loss(lambda x, t, cond: x, x_0, target=p.x0, **call)
    with pytest.raises(ValueError, match="levels must be at least 2, not 1"):
        categorical.categorical(1)
