"""The derivative of a network along x and t, which MeanFlow and sCM train with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import flow_maps, schedules
from diffjax.models import UNet

FLOW = schedules.rectified_flow()


@pytest.fixture(scope="module")
def unet():
    """A small U-Net with spans, and parameters none of which is zero."""
    module = UNet(
        base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,),
        head_channels=8, spans=True,
    )  # fmt: skip
    x, t = jnp.zeros((2, 8, 8, 1)), jnp.zeros((2, 2))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, t)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    drawn = [
        rng.normal(0, 0.3 / max(leaf.shape[:-1] or (1,)) ** 0.5, leaf.shape) for leaf in leaves
    ]
    return module, jax.tree.unflatten(tree, drawn)


def velocity_of(module, params):
    return flow_maps.average_velocity_of(
        lambda x, t, cond: module.apply({"params": params}, x, t, cond), FLOW
    )


def test_a_networks_slope_along_a_path_is_its_difference_quotient(unet):
    """The tangent of u(x_t, t, s) in float32 against a central difference in float64."""
    module, params = unet
    rng = np.random.default_rng(1)
    x, v = rng.normal(size=(2, 2, 8, 8, 1))
    t, s = np.array([0.7, 0.4]), np.array([0.2, 0.4])

    single = jax.tree.map(jnp.float32, params)
    u = jax.jit(velocity_of(module, single))
    x_t, time, along, ends = map(jnp.float32, (x, t, v, s))
    found = jax.jvp(lambda x, t: u(x, t, ends), (x_t, time), (along, jnp.ones_like(time)))[1]
    with jax.enable_x64(True):
        double = jax.tree.map(jnp.float64, params)
        u = jax.jit(velocity_of(module.clone(dtype=jnp.float64), double))
        h = 1e-3  # what is float32 within the network, as its time embedding is, limits it
        ahead, behind = (u(*map(jnp.float64, (x + d * v, t + d, s))) for d in (h, -h))
        quotient = (np.asarray(ahead) - np.asarray(behind)) / (2 * h)
    size = np.abs(quotient).max()
    assert size > 0.1
    np.testing.assert_allclose(found, quotient, atol=2e-3 * size)
    # Not by x alone: the network's own dependence on t and on the span is part of it.
    u = jax.jit(velocity_of(module, single))
    by_x = jax.jvp(lambda x: u(x, time, ends), (x_t,), (along,))[1]
    assert np.abs(np.asarray(by_x) - quotient).max() > 0.01 * size


def test_a_new_networks_output_does_not_depend_on_the_span(unet):
    """Its last layer is zero: a model that was trained without spans is continued as it is."""
    module, params = unet
    params = jax.tree.map(jnp.float32, params)
    params["span"]["out"]["kernel"] = jnp.zeros_like(params["span"]["out"]["kernel"])
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    u = jax.jit(velocity_of(module, params))
    np.testing.assert_array_equal(u(x, 0.7, 0.7), u(x, 0.7, 0.1))
