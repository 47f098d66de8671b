"""What a pixel's parameters depend on, and incremental calls against whole evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models.causal_conv import CACHE
from diffjax.models.pixelcnn import PixelCNN, empty_cache
from tests.weights import moved


def randomised(network, x, label=None, scale=0.3):
    """Parameters in which nothing is small: gates start nearly closed."""
    params = jax.jit(network.init)(jax.random.key(0), x, label)["params"]
    return moved(params, scale=scale)


@pytest.mark.parametrize(("shape", "levels"), [((5, 4, 1), 3), ((4, 3, 3), 2)])
def test_a_pixel_depends_on_every_pixel_before_it_and_on_none_after(shape, levels):
    network = PixelCNN(outputs=2, channels=4, blocks=1, levels=levels)
    x = jax.random.normal(jax.random.key(2), (1, *shape))
    params = randomised(network, x)
    slopes = jax.jit(jax.jacrev(lambda x: network.apply({"params": params}, x)[0].sum(-1)))(x)
    slopes = np.asarray(slopes)[:, :, 0]
    height, width, channels = shape
    count = height * width
    of = np.abs(slopes).reshape(count, count, channels).max(-1)  # [parameters of, pixel]
    before = np.tril(np.ones((count, count), bool), -1)
    assert (of[~before] == 0).all()
    assert (of[before] > 0).all()


@pytest.mark.parametrize(("size", "levels", "num_classes"), [((7, 6), 3, 3), ((8, 8), 2, 0)])
def test_incremental_calls_give_what_the_whole_gives(size, levels, num_classes):
    network = PixelCNN(outputs=4, num_classes=num_classes, channels=4, blocks=1, levels=levels)
    x = jax.random.normal(jax.random.key(2), (2, *size, 1))
    label = jnp.array([2, -1]) if num_classes else None
    params = randomised(network, x, label)
    whole = jax.jit(network.apply)({"params": params}, x, label)

    @jax.jit
    def row(cache, x, r):
        variables = {"params": params, CACHE: cache}
        return network.apply(variables, x, label, r, method="row", mutable=[CACHE])

    @jax.jit
    def pixel(cache, x, features, r, c):
        variables = {"params": params, CACHE: cache}
        return network.apply(variables, x, label, features, r, c, method="pixel", mutable=[CACHE])

    cache = empty_cache(network, params, x, label)
    known = jnp.zeros_like(x, bool)
    for r in range(size[0]):
        features, state = row(cache, jnp.where(known, x, 7.0), r)
        cache = state[CACHE]
        for c in range(size[1]):
            found, state = pixel(cache, jnp.where(known, x, -5.0), features, r, c)
            cache = state[CACHE]
            np.testing.assert_allclose(found, whole[:, r, c], rtol=1e-5, atol=1e-5)
            known = known.at[:, r, c].set(True)


def test_the_class_is_seen_and_no_class_is_one_of_its_own():
    network = PixelCNN(outputs=2, num_classes=2, channels=4, blocks=1, levels=1)
    x, label = jnp.zeros((3, 3, 3, 1)), jnp.array([-1, 0, 1])
    params = randomised(network, x, label)
    found = np.asarray(jax.jit(network.apply)({"params": params}, x, label))
    assert all(np.abs(found[i] - found[j]).min() > 0 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_an_incremental_call_needs_a_cache():
    network = PixelCNN(outputs=2, channels=4, blocks=1, levels=1)
    x = jnp.zeros((1, 3, 3, 1))
    params = network.init(jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match="needs the cache of `empty_cache`"):
        network.apply({"params": params}, x, None, 0, method="row", mutable=[CACHE])
