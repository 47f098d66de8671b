"""The learned weighting on losses whose mean at every noise level is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from diffjax import learned_weighting

LOG_SNR = jnp.linspace(-8.0, 8.0, 65)
LOG_MEAN = 2 * jnp.sin(LOG_SNR / 3) - 1


@pytest.fixture(scope="module")
def fitted():
    """Parameters after plain gradient descent on exponential losses with means exp(LOG_MEAN)."""
    start = learned_weighting.init(jax.random.key(0))

    def batch_loss(params, key):
        losses = jnp.exp(LOG_MEAN) * jax.random.exponential(key, (16, len(LOG_SNR)))
        u = jnp.broadcast_to(learned_weighting.log_variance(params, LOG_SNR), losses.shape)
        return learned_weighting.weighted(losses, u).mean()

    def step(params, inputs):
        key, rate = inputs
        gradient = jax.grad(batch_loss)(params, key)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), None

    keys = jax.random.split(jax.random.key(1), 4000)
    params, _ = jax.jit(lambda p: jax.lax.scan(step, p, (keys, jnp.linspace(1, 0, 4000))))(start)
    return start, params


def test_gradient_descent_finds_the_log_of_the_mean_loss(fitted):
    start, params = fitted
    u = learned_weighting.log_variance(params, LOG_SNR)
    # A loss's mean is known to a few per cent from the batches that count; u is smooth besides.
    np.testing.assert_allclose(u, LOG_MEAN, atol=0.1)
    for name in ("frequencies", "phases"):
        np.testing.assert_array_equal(params[name], start[name])


def test_gradients_become_equal_over_noise_levels(fitted):
    _, params = fitted

    def at_level(scale, u, log_mean):
        # A network whose one parameter scales the error at all levels alike.
        return learned_weighting.weighted(scale**2 * jnp.exp(log_mean), u)

    gradient = jax.jit(jax.vmap(jax.grad(at_level), (None, 0, 0)))
    plain = gradient(1.0, jnp.zeros_like(LOG_MEAN), LOG_MEAN)
    learned = gradient(1.0, learned_weighting.log_variance(params, LOG_SNR), LOG_MEAN)
    assert plain.max() / plain.min() > 50
    assert learned.max() / learned.min() < 1.2


def test_the_expected_weighted_loss_is_least_at_the_log_of_the_mean():
    losses = np.random.default_rng(0).gamma(0.5, 3.0, 1000)

    def mean(u):
        values = learned_weighting.weighted(jnp.asarray(losses), jnp.full(1000, u))
        return float(np.mean(np.asarray(values, np.float64)))

    found = scipy.optimize.minimize_scalar(mean, bounds=(-5, 5), method="bounded")
    assert found.x == pytest.approx(np.log(losses.mean()), abs=2e-3)


def test_nothing_is_weighted_at_first():
    params = learned_weighting.init(jax.random.key(3), features=16)
    assert {name: (a.shape, a.dtype) for name, a in params.items()} == {
        name: ((16,), np.float32) for name in ("weights", "frequencies", "phases")
    }
    u = learned_weighting.log_variance(params, LOG_SNR)
    losses = jax.random.uniform(jax.random.key(1), LOG_SNR.shape)
    np.testing.assert_array_equal(learned_weighting.weighted(losses, u), losses)


def test_u_has_unit_magnitude_for_weights_of_unit_magnitude():
    # Over the draw of phases each feature has mean 0 and variance 1, whatever the level.
    def one(key):
        params = learned_weighting.init(key, features=64)
        return learned_weighting.log_variance({**params, "weights": jnp.ones(64)}, LOG_SNR[:3])

    u = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 4000)))
    assert np.abs(u.mean(0)).max() < 4 / np.sqrt(4000)
    assert np.abs(u.var(0) - 1).max() < 4 * np.sqrt(2 / 4000)


def test_pure_noise_and_clean_data_are_finite():
    params = learned_weighting.init(jax.random.key(0))
    params["weights"] = params["weights"] + 1.0
    ends = jnp.array([-jnp.inf, jnp.inf])
    assert np.isfinite(learned_weighting.log_variance(params, ends)).all()
    total = lambda p: learned_weighting.log_variance(p, ends).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(total))(params)
    assert all(np.isfinite(g).all() for g in gradient.values())
    assert np.abs(gradient["weights"]).max() > 0
    assert not gradient["frequencies"].any() and not gradient["phases"].any()


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="features must be at least 1, not 0"):
        learned_weighting.init(jax.random.key(0), features=0)
    with pytest.raises(ValueError, match=r"log_variance of shape \(3, 1\) does not fit loss"):
        learned_weighting.weighted(jnp.ones(3), jnp.ones((3, 1)))
