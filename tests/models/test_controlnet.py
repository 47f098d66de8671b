"""ControlNets as a part of a network; see tests/stable_diffusion for diffusers' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models.condition import Condition, Control, Text, is_null, null
from diffjax.models.controlnet import ControlledNetwork, ControlNet
from diffjax.models.stable_diffusion import StableDiffusionUNet
from diffjax.models.unet import UNet

FIELDS = {
    "channels": (8, 16), "blocks": 1, "depths": (0, 1), "heads": (2, 2), "text_width": 8,
    "groups": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    images = tuple(rng.random((2, 8, 8, 3), np.float32) for _ in range(2))
    text = Text(rng.standard_normal((2, 3, 8), np.float32), np.ones((2, 3), bool))
    control = Control(images, np.array([[1.0, 0.5], [0.0, 2.0]], np.float32))
    x = rng.standard_normal((2, 4, 4, 4), np.float32)
    return x, jnp.array([10.0, 900.0]), Condition(text=text, control=control)


@pytest.fixture(scope="module")
def network():
    net = ControlNet(image_widths=(4, 8), **FIELDS)
    return ControlledNetwork(StableDiffusionUNet(**FIELDS), (net, net))


@pytest.fixture(scope="module")
def params(network, inputs):
    made = network.init(jax.random.key(0), *inputs)
    # The U-Net's last convolution begins at zero, too.
    made["unet"]["head"]["kernel"] = jnp.ones_like(made["unet"]["head"]["kernel"])
    return made


def test_at_initialisation_nothing_is_added(network, params, inputs):
    expected = network.unet.apply({"params": params["unet"]}, *inputs)
    assert jnp.abs(expected).max() > 0.1
    np.testing.assert_array_equal(network.apply(params, *inputs), expected)


def test_what_they_add_is_scaled_and_summed(network, params, inputs):
    x, t, condition = inputs
    first, second = (
        jax.tree.map(lambda leaf, key=key: leaf + 0.1 * jax.random.normal(key, leaf.shape), tree)
        for key, tree in zip(jax.random.split(jax.random.key(1)), params["controls"], strict=True)
    )
    parts = [
        net.apply({"params": one}, x, t, condition, image)
        for net, one, image in zip(
            network.controls, (first, second), condition.control.images, strict=True
        )
    ]
    scale = condition.control.scale[..., None, None, None]
    total = jax.tree.map(lambda a, b: scale[:, 0] * a + scale[:, 1] * b, *parts)
    expected = network.unet.apply({"params": params["unet"]}, x, t, condition, control=total)
    found = network.apply({**params, "controls": (first, second)}, x, t, condition)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert jnp.abs(found - network.apply(params, x, t, condition)).max() > 0.01


def test_wrong_images(network, params, inputs):
    x, t, condition = inputs
    with pytest.raises(ValueError, match="0 control images for 2 ControlNets"):
        network.apply(params, x, t, condition._replace(control=None))
    one = condition.control._replace(images=condition.control.images[:1])
    with pytest.raises(ValueError, match="1 control images for 2 ControlNets"):
        network.apply(params, x, t, condition._replace(control=one))
    small = tuple(image[:, :4] for image in condition.control.images)
    small = condition.control._replace(images=small)
    with pytest.raises(ValueError, match=r"is \(2, 4, 8, 3\): expected \(2, 8, 8, 3\)"):
        network.apply(params, x, t, condition._replace(control=small))


def test_the_null_condition_keeps_the_images(inputs):
    _, _, condition = inputs
    nothing = null(condition)
    assert not nothing.text.mask.any()
    jax.tree.map(np.testing.assert_array_equal, nothing.control, condition.control)
    assert is_null(nothing).all() and not is_null(condition).any()


def test_a_network_without_it_is_given_none(inputs):
    x, t, condition = inputs
    with pytest.raises(ValueError, match="a control was given to a UNet"):
        UNet(base_channels=8).init(jax.random.key(0), x, t, condition._replace(text=None))
