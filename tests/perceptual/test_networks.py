"""What holds for every network."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.losses.autoencoding import perceptual_distance
from diffjax.perceptual.classifier import classifier
from diffjax.perceptual.efficientnet_lite0 import efficientnet_lite0
from diffjax.perceptual.lpips import lpips
from diffjax.perceptual.vgg16 import vgg16


def or_skip(make):
    try:
        return make()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(
    scope="module",
    params=["classifier", "efficientnet_lite0", "hed", "lpips"],
)
def network(request):
    match request.param:
        case "classifier":
            return classifier()
        case "efficientnet_lite0":
            return or_skip(efficientnet_lite0)
        case "hed":
            return or_skip(vgg16)
        case _:
            file = request.getfixturevalue("vgg16_file")
            return or_skip(lambda: lpips(file))


@pytest.fixture
def images(network, picture):
    return picture[..., :1] if "classifier" in network.name else picture


@pytest.fixture(scope="module")
def distance(network):
    @jax.jit
    def of(params, x, y):
        features = partial(network.apply, params)
        return perceptual_distance(features, x, y, weights=network.weights)

    return partial(of, network.params)


def test_maps_fit_the_images_and_the_weights(network, images):
    maps = jax.eval_shape(network.apply, network.params, images)
    assert all(len(m.shape) == 4 and len(m) == 2 and m.dtype == jnp.float32 for m in maps)
    if network.weights is not None:
        assert [m.shape[-1] for m in maps] == [len(w) for w in network.weights]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(network.params))


def test_equal_images_are_at_no_distance(distance, images):
    # As users' programs are compiled: by the older emitters that tests of jax 0.10 otherwise take,
    # what is computed twice may differ by rounding.
    older = "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", "")
    options = {"xla_cpu_use_fusion_emitters": True} if older else {}
    compiled = jax.jit(distance, compiler_options=options)
    np.testing.assert_array_equal(compiled(images, images), [0, 0])


def test_distance_grows_with_noise(distance, images):
    noise = jax.random.normal(jax.random.key(0), images.shape)
    found = [distance(images, images + scale * noise) for scale in (0.02, 0.1, 0.5)]
    assert (np.diff(found, axis=0) > 0).all() and (found[0] > 0).all()


def test_distance_grows_with_blur(distance, images):
    found, blurred = [], images
    for _ in range(3):
        for axis in (1, 2):
            blurred = sum(jnp.roll(blurred, k, axis) for k in (-2, -1, 0, 1, 2)) / 5
        found.append(distance(images, blurred))
    assert (np.diff(found, axis=0) > 0).all() and (found[0] > 0).all()


def test_slope_is_the_distances_and_finite(distance, images):
    noise = jax.random.normal(jax.random.key(1), images.shape)
    near = images + 0.1 * noise
    slope = jax.grad(lambda y: distance(images, y).sum())
    direction = slope(near)
    assert jnp.isfinite(direction).all()
    step = 0.02 / jnp.linalg.norm(direction)
    risen, sunk = (distance(images, near + s * step * direction).sum() for s in (1, -1))
    np.testing.assert_allclose(risen - sunk, 2 * step * jnp.vdot(direction, direction), rtol=0.1)
    # Where images are equal, or flat, a root could divide by nothing.
    assert jnp.isfinite(slope(images)).all()
    assert jnp.isfinite(slope(jnp.zeros_like(images))).all()


def test_grey_is_repeated(network, picture):
    if "classifier" in network.name:
        with pytest.raises(ValueError, match=r"3 channels .*expected 1"):
            network.apply(network.params, picture)
        return
    grey = picture[:1, ..., :1]
    same = jnp.concatenate([grey] * 3, axis=-1)
    maps = jax.jit(network.apply)
    for a, b in zip(maps(network.params, grey), maps(network.params, same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_odd_sides(network):
    channels = 1 if "classifier" in network.name else 3
    images = jax.ShapeDtypeStruct((1, 37, 51, channels), jnp.float32)
    assert len(jax.eval_shape(network.apply, network.params, images)) >= 3


@pytest.mark.parametrize("shape", [(1, 7, 40, 1), (1, 40, 7, 1), (40, 40, 1), (1, 40, 40, 2)])
def test_images_it_cannot_take(network, shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match="expected") as caught:
        jax.eval_shape(network.apply, network.params, images)
    assert "\n" not in str(caught.value)
