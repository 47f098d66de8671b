"""Augmentation by the config: names, what is refused, and samples without any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.augmentation import choices
from diffjax.errors import UserError
from diffjax.experiment import augmentation, diffusion, schema
from diffjax.models.condition import Condition


@pytest.fixture
def config(tiny_config):
    tiny_config.unlock()
    return tiny_config


def test_names_and_the_older_switch(config):
    assert augmentation.augmentations(config) == ()
    config.data.augment = ("crop(padding=2)", "rotate90")
    config.data.flip = True
    found = augmentation.augmentations(config)
    assert [name for name, _ in found] == ["flip", "augment_crop", "augment_rotate90"]
    image = jnp.arange(48.0).reshape(4, 4, 3) / 48
    key = jax.random.key(1)
    np.testing.assert_array_equal(found[1][1](key, image), choices.crop(key, image, padding=2))
    assert augmentation.non_leaking(config) is None and augmentation.width(config) == 0
    config.diffusion.augment = "edm(probability=0.3)"
    assert augmentation.non_leaking(config).probability == 0.3
    assert augmentation.width(config) == 9


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("data.augment", ("flop",), "one of flip, rotate90, crop, window, translate, colour"),
        ("data.augment", ("crop(pad=2)",), "crop takes padding, border, not pad"),
        ("data.augment", ("crop(padding='a')",), "padding must be a whole number"),
        ("data.augment", ("flip", "flip"), "has flip twice"),
        ("data.augment", ("crop(padding=8)",), "less than the side"),
        ("data.augment", ("math:gcd",), "invalid config"),
        ("data.augment", (3,), "a tuple of names"),
        ("diffusion.augment", "ada", "expected one of none, edm"),
        ("diffusion.augment", "edm(probability=1.5)", r"must be in \[0, 1\]"),
    ],
)
def test_what_is_refused(config, key, value, match):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=match):
        diffusion.resolve(config)


def test_mirrored_twice(config):
    config.data.update(flip=True, augment=("flip",))
    with pytest.raises(UserError, match=r"flip twice, and config\.data\.flip is True"):
        augmentation.check(config)


def test_arrays_are_not_augmented(config):
    config.data.augment = ("flip",)
    with pytest.raises(UserError, match=r"trained on arrays of \(2,\): set it to \(\)"):
        augmentation.check(config, x_0="arrays of (2,)")
    config.data.augment = ()
    config.diffusion.augment = "edm"
    with pytest.raises(UserError, match="trained on cached latents: set it to 'none'"):
        augmentation.check(config, x_0="cached latents")


def own_network(shape, num_classes):
    raise AssertionError("not to be made")


def test_a_network_that_is_not_given_the_parameters(config):
    config.model = {"name": "textwrap:indent", "class_conditional": False}
    config.diffusion.augment = "edm"
    with pytest.raises(UserError, match="no parameter augmentation_width"):
        augmentation.non_leaking(config)


@pytest.mark.parametrize("class_conditional", [True, False])
def test_samples_are_of_no_augmentation(config, class_conditional):
    """All that samples, edits and likelihoods are conditioned on has parameters 0."""
    config.diffusion.augment = "edm(probability=0.9)"
    config.model.class_conditional = class_conditional
    setup = diffusion.resolve(config)
    batch = setup.generator.conditions.batch(0, 5)
    np.testing.assert_array_equal(batch.augmentation, np.zeros((5, 9)))
    assert (batch.label is not None) == class_conditional
    of_batch = setup.conditions.of_batch(
        {"image": np.zeros((2, 8, 8, 1)), "label": np.zeros(2, np.int32)}, None
    )
    np.testing.assert_array_equal(of_batch.augmentation, np.zeros((2, 9)))

    # And to the network, zeros are what nothing is.
    params = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 0.05, leaf.dtype), setup.model.parameter_shapes()
    )
    x, t = jnp.ones((2, 8, 8, 1)), jnp.array([3.0, 500.0])
    label = jnp.zeros(2, jnp.int32) if class_conditional else None

    def out(augmentation):
        return setup.network.apply(params, x, t, Condition(label, augmentation=augmentation))

    np.testing.assert_array_equal(out(jnp.zeros((2, 9))), out(None))
    assert np.abs(np.asarray(out(jnp.ones((2, 9))) - out(None))).max() > 0


def test_old_configs_have_none(config):
    del config.data["augment"]
    del config.diffusion["augment"]
    done = schema.complete(config)
    assert done.data.augment == () and done.diffusion.augment == "none"
