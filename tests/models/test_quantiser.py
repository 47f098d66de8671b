"""Vector quantisation against SciPy's, and on clusters whose means are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models import quantiser

KEY = jax.random.key(0)
CENTRES = np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])


def clusters(n=300):
    noise = 0.1 * jax.random.normal(KEY, (n, 2))
    return jnp.asarray(CENTRES)[jnp.arange(n) % 3] + noise


def book(codes):
    codes = jnp.asarray(codes, jnp.float32)
    return quantiser.Codebook(codes, jnp.ones(len(codes)), codes)


def test_nearest_codes_are_scipys():
    vq = pytest.importorskip("scipy.cluster.vq")
    codebook = quantiser.init_codebook(KEY, 17, 5)
    z = jax.random.normal(jax.random.key(1), (4, 6, 5))
    indices = quantiser.nearest(codebook, z)
    expected, _ = vq.vq(np.asarray(z).reshape(-1, 5), np.asarray(codebook.codes))
    np.testing.assert_array_equal(indices.reshape(-1), expected)
    assert indices.shape == (4, 6) and indices.dtype == jnp.int32


def test_codes_stand_in_the_place_of_vectors_and_let_the_gradient_through():
    codebook, z = book(CENTRES), clusters(6)
    codes, indices = quantiser.quantise(codebook, z)
    np.testing.assert_allclose(codes, CENTRES[np.arange(6) % 3], atol=1e-6)
    np.testing.assert_array_equal(indices, np.arange(6) % 3)
    weights = jnp.arange(12.0).reshape(6, 2)
    slope = jax.grad(lambda z: (weights * quantiser.quantise(codebook, z)[0]).sum())(z)
    np.testing.assert_array_equal(slope, weights)
    into_codes = jax.grad(lambda c: quantiser.quantise(book(c), z)[0].sum())(codebook.codes)
    np.testing.assert_array_equal(into_codes, 0)


def test_commitment_draws_vectors_to_their_codes_and_no_code_to_vectors():
    codebook, z = book(CENTRES), clusters(6)[:, None]
    indices = quantiser.nearest(codebook, z)
    before = quantiser.commitment(codebook, z, indices)
    assert before.shape == (6,)
    slope = jax.grad(lambda z: quantiser.commitment(codebook, z, indices).sum())(z)
    # The mean over two numbers of a square: a full step along the slope lands on the code.
    np.testing.assert_allclose(z - slope, CENTRES[np.arange(6) % 3][:, None], atol=1e-6)
    still = jax.grad(lambda c: quantiser.commitment(book(c), z, indices).sum())(codebook.codes)
    np.testing.assert_array_equal(still, 0)


def test_without_memory_an_update_is_a_step_of_k_means():
    vq = pytest.importorskip("scipy.cluster.vq")
    z, codebook = clusters(), book(CENTRES + 0.5)
    indices = quantiser.nearest(codebook, z)
    updated = quantiser.update(codebook, z, indices, key=KEY, decay=0.0)
    means, _ = vq.kmeans2(np.asarray(z), np.asarray(codebook.codes), iter=1, minit="matrix")
    np.testing.assert_allclose(updated.codes, means, atol=1e-5)
    np.testing.assert_allclose(updated.counts, 100)


def test_many_updates_find_the_clusters_and_their_shares():
    z, codebook = clusters(), book(CENTRES + 1.0)
    for step in range(200):
        indices = quantiser.nearest(codebook, z)
        codebook = quantiser.update(codebook, z, indices, key=jax.random.key(step), decay=0.9)
    np.testing.assert_allclose(codebook.codes, CENTRES, atol=0.05)
    np.testing.assert_allclose(codebook.counts, 100, rtol=1e-3)


def test_dead_codes_start_again_at_vectors_of_the_batch():
    far = book(np.concatenate([CENTRES[:1], np.full((5, 2), 50.0)]))
    z = clusters()
    for step in range(2):
        indices = quantiser.nearest(far, z)
        far = quantiser.update(far, z, indices, key=jax.random.key(step), decay=0.0)
    distances = jnp.abs(far.codes[:, None] - z[None]).sum(-1).min(1)
    assert distances.max() < 0.5  # every code is near the data now
    used = len(np.unique(quantiser.nearest(far, z)))
    assert used >= 4


def test_perplexity_counts_the_codes_in_use():
    assert quantiser.perplexity(jnp.zeros(8, int), 5) == pytest.approx(1)
    assert quantiser.perplexity(jnp.arange(20) % 5, 5) == pytest.approx(5, rel=1e-5)
    assert quantiser.perplexity(jnp.arange(20) % 2, 5) == pytest.approx(2, rel=1e-5)
