"""Samples against whole evaluations with the same keys, and against enumerated probabilities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax.inference.pixelcnn import sample_images
from diffjax.likelihood.logistic_mixture import (
    image_bits_per_dim,
    mixture_from_outputs,
    number_of_outputs,
    sample_logistic_mixture,
)
from diffjax.models.pixelcnn import PixelCNN
from tests.weights import moved


def randomised(network, x, label=None, scale=0.3):
    """Parameters in which nothing is small: gates start nearly closed."""
    params = jax.jit(network.init)(jax.random.key(0), x, label)["params"]
    return moved(params, scale=scale)


@pytest.mark.parametrize("shape", [(4, 3, 1), (3, 3, 3)])
def test_samples_are_those_of_whole_evaluations(shape):
    height, width, channels = shape
    outputs = number_of_outputs(channels=channels, components=2)
    network = PixelCNN(outputs=outputs, num_classes=3, channels=4, blocks=1, levels=2)
    label = jnp.array([2, 0, 1])
    params = randomised(network, jnp.zeros((3, *shape)), label)
    keys = jax.random.split(jax.random.key(5), 3)
    found = jax.jit(lambda p: sample_images(network, p, keys, label, shape=shape))(params)

    whole = jax.jit(lambda x: network.apply({"params": params}, x, label))
    x = np.zeros((3, *shape), np.float32)
    for row, column in itertools.product(range(height), range(width)):
        at = whole(x)[:, row, column]
        for i in range(3):
            mixture = mixture_from_outputs(at[i], channels=channels)
            key = jax.random.fold_in(keys[i], row * width + column)
            x[i, row, column] = sample_logistic_mixture(mixture, key)
    np.testing.assert_allclose(found, x, atol=1e-6)
    assert len(np.unique(x)) > 10


# Of two pixels of four levels: the first one's probabilities, then 0.7 for the same level again.
TABLE = np.array([0.4, 0.3, 0.2, 0.1])[:, None] * (0.1 + 0.6 * np.eye(4))


def fitted(network, images):
    """Parameters after 150 steps of Adam on the cross entropy from TABLE."""
    params = randomised(network, images[:1], scale=0.0)
    optimizer = optax.adam(2e-2)

    def cross_entropy(params):
        bits = image_bits_per_dim(network.apply({"params": params}, images), images, levels=4)
        return (TABLE.ravel() * bits).sum()

    def step(carried, _):
        params, state = carried
        updates, state = optimizer.update(jax.grad(cross_entropy)(params), state)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda start: jax.lax.scan(step, start, length=150))
    return run((params, optimizer.init(params)))[0][0]


@pytest.mark.parametrize("size", [(2, 1), (1, 2)])
def test_two_pixels_have_the_enumerated_probabilities(size):
    shape, levels, draws = (*size, 1), 4, 20_000
    network = PixelCNN(outputs=12, channels=4, blocks=1, levels=2, dropout=0.0)
    values = np.linspace(-1, 1, levels)
    images = jnp.asarray(list(itertools.product(values, repeat=2)), jnp.float32)
    images = images.reshape(-1, *shape)
    params = fitted(network, images)
    bits = image_bits_per_dim(network.apply({"params": params}, images), images, levels=levels)
    p = np.exp2(-2 * np.asarray(bits, np.float64))
    np.testing.assert_allclose(p.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(p.reshape(levels, levels), TABLE, atol=0.06)  # dependent, as it is

    keys = jax.random.split(jax.random.key(0), draws)
    x = jax.jit(lambda p: sample_images(network, p, keys, shape=shape, levels=levels))(params)
    number = np.rint((np.asarray(x).reshape(draws, 2) + 1) * (levels - 1) / 2).astype(int)
    seen = np.bincount(number @ [levels, 1], minlength=levels**2) / draws
    assert (np.abs(seen - p) < 5 * np.sqrt(p * (1 - p) / draws) + 1e-9).all()
