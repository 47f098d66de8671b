"""Samples of a generator: a function of the seed and the sample's number, however batched."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.conditioning.conditions import Conditions
from diffjax.errors import UserError
from diffjax.inference.gan import sample_images
from diffjax.inference.image_generator import ImageGenerator
from diffjax.inference.sample_conditions import Choice, SampleConditions
from diffjax.latent.space import PixelSpace
from diffjax.models.gan import Generator

SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def network():
    return Generator(SHAPE, num_classes=3, channels=(4, 4))


@pytest.fixture(scope="module")
def params(network):
    return network.init(jax.random.key(0), jnp.zeros((1, 5)), jnp.zeros(1, jnp.int32))["params"]


def drawing(network, *, seed=0, labels=()):
    conditions = SampleConditions(PixelSpace(SHAPE), Conditions(3), Choice(labels))
    draw = partial(sample_images, network, latent_size=5)
    return ImageGenerator(draw, "sample_latents", conditions, seed, batch_size=4)


def test_a_sample_does_not_depend_on_its_batch(network, params):
    draw = drawing(network)
    whole = draw(params, start=0, count=7).images.astype(int)
    assert whole.shape == (7, *SHAPE)
    apart = np.concatenate([
        draw(params, start=0, count=2, batch_size=2).images,
        draw(params, start=2, count=5, batch_size=5).images,
    ])  # fmt: skip
    assert np.abs(whole - apart).max() <= 1  # rounding, as products are blocked by batch
    other = drawing(network, seed=1)(params, start=0, count=7).images
    assert np.abs(whole - other).max() > 10


def test_latents_are_of_the_standard_normal():
    keys = jax.random.split(jax.random.key(3), 4000)

    class Echo:
        def apply(self, variables, z, label):
            return z / 8  # images are clipped to [-1, 1]

    z = 8 * np.asarray(sample_images(Echo(), {}, keys, latent_size=3))
    assert np.abs(z.mean(0)).max() < 4 / np.sqrt(4000)
    assert np.abs(np.cov(z.T) - np.eye(3)).max() < 0.1


def test_labels_go_round_and_parameters_must_be_finite(network, params):
    conditions = drawing(network, labels=(2, 0)).conditions
    assert list(conditions.labels(0, 5)) == [2, 0, 2, 0, 2]
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    with pytest.raises(UserError, match="not finite: use another"):
        drawing(network)(broken, start=0, count=1)
