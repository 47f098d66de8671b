"""Offset noise: its covariance by Monte Carlo, and its keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.losses.offset_noise import offset_noise

KEY = jax.random.key(0)


def white(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_covariance_is_one_plus_a_constant_within_a_channel():
    n, strength = 40_000, 0.5
    eps = white(n, 2, 2, 2)
    noise = np.asarray(offset_noise(KEY, jnp.arange(n), eps, strength=strength))
    # Channels first, so that pixels of one channel are a block of four.
    flat = np.moveaxis(noise, -1, 1).reshape(n, 8)
    stated = np.eye(8) + strength**2 * np.kron(np.eye(2), np.ones((4, 4)))
    # Standard error of a Gaussian's covariance: sqrt((C_ii C_jj + C_ij^2) / n).
    error = np.sqrt((np.outer(np.diag(stated), np.diag(stated)) + stated**2) / n)
    assert (np.abs(np.cov(flat.T) - stated) < 4.5 * error).all()
    assert np.abs(flat.mean(0)).max() < 4.5 * np.sqrt(1.25 / n)


def test_only_the_channel_means_change():
    eps = white(5, 3, 4, 2)
    noise = offset_noise(KEY, jnp.arange(5), eps, strength=0.3)
    added = np.asarray(noise - eps)
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-6)
    # Another one for every example and channel.
    assert len(np.unique(added[:, 0, 0].round(5))) == 10
    twice = np.asarray(offset_noise(KEY, jnp.arange(5), eps, strength=0.6) - eps)
    np.testing.assert_allclose(twice, 2 * added, atol=1e-6)


def test_strength_0_changes_nothing():
    eps = white(5, 3, 3, 2)
    np.testing.assert_array_equal(offset_noise(KEY, jnp.arange(5), eps, strength=0.0), eps)


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 2, 3)])
def test_an_example_keeps_its_offset_however_the_batch_is_split(shape):
    eps, indices = white(*shape), np.arange(6)
    whole = offset_noise(KEY, indices, eps, strength=0.1)
    halves = [offset_noise(KEY, i, eps[i], strength=0.1) for i in np.split(indices, 2)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert not np.array_equal(whole, offset_noise(KEY, indices + 6, eps, strength=0.1))
    assert not np.array_equal(whole, offset_noise(jax.random.key(2), indices, eps, strength=0.1))


@pytest.mark.parametrize(
    ("shape", "indices", "strength", "message"),
    [
        ((2, 3, 1), 2, -0.1, "strength must be at least 0, not -0.1"),
        ((2, 3, 1), 2, float("nan"), "strength must be at least 0, not nan"),
        ((2,), 2, 0.1, r"eps must be \(B, ..., C\), not \(2,\)"),
        ((2, 3, 1), 3, 0.1, r"indices must be one an example, \(2,\), not \(3,\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused(shape, indices, strength, message):
    with pytest.raises(ValueError, match=message):
        offset_noise(KEY, jnp.arange(indices), jnp.zeros(shape), strength=strength)
