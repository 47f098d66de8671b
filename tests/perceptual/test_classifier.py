import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.models.classifier import Classifier
from diffjax.perceptual.classifier import classifier
from diffjax.perceptual.classifier_weights import (
    SHIPPED_WEIGHTS,
    load_classifier,
    round_weights,
    save_classifier,
)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (3, 28, 28, 1), minval=-1)


def test_maps_are_the_three_stages(images):
    network = classifier()
    shapes = [m.shape for m in jax.eval_shape(network.apply, network.params, images)]
    assert shapes == [(3, 14, 14, 32), (3, 7, 7, 64), (3, 4, 4, 96)]


def test_the_last_map_leads_to_the_features(images):
    network = classifier()
    maps = network.apply(network.params, images)
    dense = network.params["params"]["features"]
    found = jax.nn.silu(maps[-1].mean((1, 2)) @ dense["kernel"] + dense["bias"])
    model = Classifier(num_classes=len(load_classifier(SHIPPED_WEIGHTS).class_names))
    _, expected = model.apply(network.params, images, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_image_does_not_see_its_batch(images):
    network = classifier()
    alone = network.apply(network.params, images[:1])
    for one, all_ in zip(alone, network.apply(network.params, images), strict=True):
        np.testing.assert_allclose(one[0], all_[0], rtol=1e-4, atol=1e-5)


def test_a_file_of_ones_own(tmp_path):
    shipped = load_classifier(SHIPPED_WEIGHTS)
    model = Classifier(num_classes=4)
    variables = model.init(jax.random.key(1), jnp.zeros((1, 32, 32, 3)), train=False)
    own = dataclasses.replace(
        shipped,
        weights=round_weights(variables),
        data="cifar4",
        class_names=("a", "b", "c", "d"),
        image_shape=(32, 32, 3),
    )
    path = tmp_path / "own.npz"
    save_classifier(path, own)
    network = classifier(str(path))
    assert "cifar4" in network.name
    assert len(network.apply(network.params, jnp.zeros((1, 32, 32, 3)))) == 3
    with pytest.raises(ValueError, match="1 channels for the cifar4 classifier; expected 3"):
        network.apply(network.params, jnp.zeros((1, 32, 32, 1)))


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="found no classifier weights"):
        classifier(str(tmp_path / "none.npz"))
