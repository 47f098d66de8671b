"""A first stage's losses: against Monte Carlo, known optima, and what they must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import autoencoding

KEY = jax.random.key(0)


def test_divergence_is_the_mean_of_the_log_ratio():
    stats = pytest.importorskip("scipy.stats")
    mean, log_variance = jnp.array([[0.7, -1.2]]), jnp.array([[-0.5, 0.4]])
    eps = jax.random.normal(KEY, (200_000, 2))
    alike = (jnp.broadcast_to(a, eps.shape) for a in (mean, log_variance))
    z = np.asarray(autoencoding.sample_gaussian(*alike, eps=eps))
    std = np.exp(np.asarray(log_variance) / 2)
    ratio = (stats.norm.logpdf(z, np.asarray(mean), std) - stats.norm.logpdf(z)).sum(1)
    expected = float(autoencoding.gaussian_kl(mean, log_variance)[0])
    assert abs(ratio.mean() - expected) < 4 * ratio.std() / np.sqrt(len(ratio))


def test_divergence_is_zero_at_the_prior_alone_and_exact_near_it():
    zero = jnp.zeros((3, 2, 2, 1))
    np.testing.assert_array_equal(autoencoding.gaussian_kl(zero, zero), 0)
    near = autoencoding.gaussian_kl(zero[:1, :1, :1], jnp.full((1, 1, 1, 1), 1e-3))
    np.testing.assert_allclose(near, 1e-6 / 4, rtol=1e-2)  # l^2 / 4 where l is small
    slope = jax.grad(lambda m: autoencoding.gaussian_kl(m, jnp.zeros_like(m)).sum())
    np.testing.assert_allclose(slope(jnp.array([[2.0, -1.0]])), [[2.0, -1.0]])


def test_moments_are_split_and_kept_finite():
    moments = jnp.concatenate([jnp.ones((1, 2)), jnp.array([[-1e9, 1e9]])], axis=-1)
    mean, log_variance = autoencoding.split_gaussian(moments)
    np.testing.assert_array_equal(mean, [[1, 1]])
    assert np.isfinite(autoencoding.sample_gaussian(mean, log_variance, eps=jnp.ones((1, 2)))).all()


def test_adaptive_weight_makes_both_slopes_as_long():
    """A linear last layer, whose two losses pull with known strength."""
    kernel = jax.random.normal(KEY, (4, 3))
    hidden = jax.random.normal(jax.random.key(1), (8, 4))
    slopes = [
        jax.grad(lambda k, s=strength, d=direction: s * (hidden @ k @ d).sum())(kernel)
        for strength, direction in ((5.0, jnp.array([1.0, 0, 0])), (0.2, jnp.array([0, 0, 1.0])))
    ]
    weight = autoencoding.adaptive_weight(*slopes)
    lengths = [float(jnp.linalg.norm(slope)) for slope in slopes]
    np.testing.assert_allclose(weight * lengths[1], lengths[0], rtol=1e-3)
    assert autoencoding.adaptive_weight(slopes[0], 0 * slopes[1]) == 1e4
    through = jax.grad(lambda s: autoencoding.adaptive_weight(s * slopes[0], slopes[1]))(1.0)
    assert through == 0


def pyramid(images):
    """Features of two layers: differences of neighbours, and their means over 2x2."""
    fine = jnp.stack([images[:, 1:, 1:, 0] - images[:, :-1, 1:, 0], images[:, 1:, 1:, 0]], axis=-1)
    return fine, fine[:, ::2, ::2] + 0.1


X, Y = jax.random.normal(KEY, (2, 3, 9, 9, 1))


def test_a_perceptual_distance_is_one():
    distance = autoencoding.perceptual_distance(pyramid, X, Y)
    assert distance.shape == (3,) and (distance > 0).all()
    np.testing.assert_array_equal(autoencoding.perceptual_distance(pyramid, X, X), 0)
    np.testing.assert_allclose(autoencoding.perceptual_distance(pyramid, Y, X), distance, rtol=1e-5)
    # Unit vectors: at most 4 a layer, and the features' scale does not count.
    assert (distance <= 8).all()

    def louder(images):
        return [7.0 * maps for maps in pyramid(images)]

    scaled = autoencoding.perceptual_distance(louder, X, Y)
    np.testing.assert_allclose(scaled, distance, rtol=1e-4)


def test_weights_choose_features_and_layers():
    first, none = jnp.array([1.0, 0.0]), jnp.zeros(2)
    both = autoencoding.perceptual_distance(pyramid, X, Y, weights=[first, 1 - first])
    parts = [
        autoencoding.perceptual_distance(pyramid, X, Y, weights=weights)
        for weights in ([first, none], [none, 1 - first])
    ]
    np.testing.assert_allclose(both, parts[0] + parts[1], rtol=1e-5)
    with pytest.raises(ValueError, match="1 vectors of weights for 2 layers"):
        autoencoding.perceptual_distance(pyramid, X, Y, weights=[first])


def test_nothing_where_there_is_no_feature_has_a_finite_slope():
    blank = jnp.zeros((1, 9, 9, 1))
    slope = jax.grad(lambda x: autoencoding.perceptual_distance(pyramid, x, Y[:1]).sum())(blank)
    assert np.isfinite(slope).all()
