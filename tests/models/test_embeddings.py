"""Embeddings of time and class, and Fourier features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models.embeddings import (
    ClassEmbedding,
    TimeEmbedding,
    fourier_features,
    random_time_features,
    timestep_embedding,
)


def test_a_time_is_a_point_on_circles_of_falling_speed():
    """Vaswani et al. 2017: t + s is a rotation of t by angles that depend on s alone."""
    t = jnp.array([0, 1, 17, 500, 517, 999])
    e = np.asarray(timestep_embedding(t, 8), np.float64)
    assert e.shape == (6, 8) and timestep_embedding(t, 8).dtype == jnp.float32
    circles = e[:, :4] + 1j * e[:, 4:]  # cosines first, then sines
    np.testing.assert_allclose(np.abs(circles), 1, rtol=1e-6)
    np.testing.assert_allclose(circles[0], 1)
    # float32 holds an angle of 1000 to 6e-5.
    np.testing.assert_allclose(circles[4], circles[3] * circles[2], atol=2e-4)
    # Angles of one step fall from 1 in equal ratios, and the next after the last would be 1e-4.
    angles = np.angle(circles[1])
    np.testing.assert_allclose(angles[0], 1, rtol=1e-6)
    np.testing.assert_allclose(angles[1:] / angles[:-1], 0.1, rtol=1e-4)


def test_that_of_diffusers():
    pytest.importorskip("diffusers", reason="a second implementation of the embedding")
    torch = pytest.importorskip("torch", reason="diffusers needs torch")
    from diffusers.models.embeddings import get_timestep_embedding

    theirs = get_timestep_embedding(
        torch.tensor([0.0, 3.5, 777.0]), 32, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    ours = timestep_embedding(jnp.array([0.0, 3.5, 777.0]), 32)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)


@pytest.mark.parametrize("scale", [0.016, 0.1])
def test_random_time_features_are_those_of_a_gaussian_kernel(scale):
    """Rahimi & Recht 2007: their products are the kernel whose spectrum the frequencies have."""
    t, features = jnp.linspace(0, 40, 9), 20_000
    found = random_time_features(t, features, scale=scale)
    assert found.shape == (9, features) and found.dtype == jnp.float32
    kernel = np.exp(-2 * (np.pi * scale * np.subtract.outer(t, t)) ** 2)
    # The mean of 10,000 cosines, of variance 1 / 2 at most.
    np.testing.assert_allclose(found @ found.T / (features / 2), kernel, atol=4 * 0.5**0.5 / 100)
    np.testing.assert_array_equal(found, random_time_features(t, features, scale=scale))
    assert random_time_features(t, 7)[:, -1].tolist() == [0] * 9


def test_the_time_embedding_takes_either_features():
    t = jnp.array([3.0, 700.0])
    module = TimeEmbedding(8, 16, random_time_features)
    params = module.init(jax.random.key(0), t)
    plain = TimeEmbedding(8, 16)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, plain.init(jax.random.key(0), t)
    )  # the frequencies are no parameters
    assert not np.allclose(module.apply(params, t), plain.apply(params, t))


def test_odd_dimensions_end_in_zero_and_halves_in_time_stay_apart():
    features = timestep_embedding(jnp.array([5.0, 5.5]), 7)
    assert features.shape == (2, 7)
    np.testing.assert_array_equal(features[:, -1], 0)
    np.testing.assert_array_equal(features[:, :6], timestep_embedding(jnp.array([5.0, 5.5]), 6))
    assert np.abs(features[0] - features[1]).max() > 0.1


def test_bfloat16_networks_get_float32_angles():
    t = jnp.array([998.0, 999.0])
    module = TimeEmbedding(16, 32, dtype=jnp.bfloat16)
    params = module.init(jax.random.key(0), t)
    out = module.apply(params, t)
    assert out.dtype == jnp.bfloat16 and out.shape == (2, 32)
    exact = TimeEmbedding(16, 32).apply(params, t)
    # A bfloat16 t would make 998 and 999 the same number.
    assert not np.array_equal(out[0], out[1])
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.05)


def test_negative_labels_are_one_null_class():
    module = ClassEmbedding(3, 8)
    labels = jnp.array([0, 1, 2, -1, -5])
    params = module.init(jax.random.key(0), labels)
    assert params["params"]["table"]["embedding"].shape == (4, 8)
    out = np.asarray(module.apply(params, labels))
    np.testing.assert_array_equal(out[3], out[4])
    assert len(np.unique(out[:4], axis=0)) == 4


def test_fourier_features_tell_neighbouring_levels_apart():
    levels = jnp.asarray(np.arange(256) / 127.5 - 1, jnp.float32)
    x = levels.reshape(1, 16, 16, 1)
    features = np.asarray(fourier_features(x, x, (0, 6, 7)), np.float64)
    assert features.shape == (1, 16, 16, 7)
    np.testing.assert_array_equal(features[..., :1], x)
    waves = features[..., 1:].reshape(256, 2, 3)  # sine and cosine of each exponent
    np.testing.assert_allclose((waves**2).sum(1), 1, atol=1e-5)
    turned = np.unwrap(np.arctan2(waves[:, 0], waves[:, 1]), axis=0)
    # From -1 to 1: once round for n = 0, and by 2^n times that.
    assert turned[-1, 0] - turned[0, 0] == pytest.approx(2 * np.pi, abs=1e-4)
    step = np.sum(waves[1:] * waves[:-1], axis=1)  # cosine of the angle from level to level
    np.testing.assert_allclose(step[:, 1], np.cos(np.pi * 128 / 255), atol=2e-4)
    np.testing.assert_allclose(step[:, 2], np.cos(np.pi * 256 / 255), atol=2e-4)
    assert step[:, 1].max() < 0.01 and step[:, 2].min() > -1.001 and step[:, 2].max() < -0.99


def test_fourier_features_are_of_x_and_stay_float32():
    h = jnp.zeros((2, 3, 4, 5), jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 3))
    out = fourier_features(h, x, (6, 7))
    assert out.shape == (2, 3, 4, 5 + 2 * 2 * 3) and out.dtype == jnp.float32
    # x by whole periods of the slower wave gives the same features.
    np.testing.assert_allclose(out, fourier_features(h, x + 2.0**-5, (6, 7)), atol=2e-4)
    assert fourier_features(h, x, ()) is h
