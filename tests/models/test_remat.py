"""What a U-Net keeps for the way back: gradients do not depend on it, memory does."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.accelerator.ops import NATIVE
from diffjax.models import ConvNeXtBlock, UNet, remat
from diffjax.models.condition import Condition, Text
from diffjax.models.ops import XLA
from tests.weights import normal_like

POLICIES = {"none": None, "dots": remat.dots, "layers": remat.layers, "full": remat.full}
SIDE = 16
# The same sums, which XLA may fuse and order otherwise.
TOLERANCE = 1e-4


pytestmark = pytest.mark.usefixtures("compile_quickly")


def loss_of(**options):
    """(loss, parameters) of a small network with attention, dropout and, if asked, text."""
    x = jax.random.normal(jax.random.key(0), (2, SIDE, SIDE, 3))
    cond = None
    if "text_width" in options:
        tokens = jax.random.normal(jax.random.key(1), (2, 3, options["text_width"]))
        cond = Condition(text=Text(tokens, jnp.ones((2, 3), bool)))
    network = UNet(
        base_channels=8, channel_multipliers=(1,), num_res_blocks=1, head_channels=8, dropout=0.3,
        attention_resolutions=(SIDE,), **options,
    )  # fmt: skip

    def loss(params):
        keys = {"dropout": jax.random.key(2)}
        out = network.apply(params, x, jnp.array([3.0, 700.0]), cond, train=True, rngs=keys)
        return jnp.square(out - 1).mean()

    like = jax.eval_shape(network.init, jax.random.key(3), x, jnp.zeros(2), cond)
    # Zero-started layers would hide what comes before them.
    return loss, normal_like(like, scale=0.2)


def kept(**options):
    """Shapes of all that the way back reads, parameters included."""
    loss, params = loss_of(**options)
    return jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params))


def size(values):
    return sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in values if is_number(v))


def is_number(value):
    return not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def attention_matrices(values):
    """How many arrays are a number for every pair of pixels of every image."""
    return sum(math.prod(v.shape) == 2 * SIDE**4 for v in values)


@pytest.mark.parametrize(
    ("options", "policies"),
    [
        ({}, ("dots", "layers", "full")),
        # A partial is what a config's "convnext(expansion=2)" becomes.
        ({"text_width": 4, "block": functools.partial(ConvNeXtBlock, expansion=2)}, ("layers",)),
    ],
    ids=["image", "text"],
)
def test_gradients_are_the_same_by_every_policy(options, policies):
    def made(policy):
        loss, params = loss_of(remat=policy, **options)
        return jax.jit(jax.value_and_grad(loss))(params)

    value, gradients = made(None)
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(gradients))
    for name in policies:
        found, ours = made(POLICIES[name])
        np.testing.assert_allclose(found, value, rtol=TOLERANCE)
        close = functools.partial(np.testing.assert_allclose, atol=TOLERANCE * largest)
        jax.tree.map(close, ours, gradients)


# The accelerator's calls are traced here, not run: it need not have been built.
@pytest.mark.parametrize("ops", [XLA, NATIVE], ids=["xla", "accelerator"])
def test_each_keeps_less_than_the_one_before(ops):
    values = {name: kept(remat=policy, ops=ops) for name, policy in POLICIES.items()}
    none, dots, layers, full = (size(values[name]) for name in POLICIES)
    assert none > 1.5 * dots > dots > 1.5 * layers > layers > 1.5 * full
    of_pairs = {name: attention_matrices(v) for name, v in values.items()}
    # Four blocks with attention; softmax's result is kept beside what it is of where all is.
    assert of_pairs == {"none": 8, "dots": 4, "layers": 0, "full": 0}


def test_no_convolution_is_made_twice_but_by_full():
    def convolutions(policy):
        loss, params = loss_of(remat=policy)
        lowered = jax.jit(jax.value_and_grad(loss)).lower(params)
        return lowered.as_text().count("stablehlo.convolution")

    plain = convolutions(None)
    assert convolutions(remat.layers) == plain < convolutions(remat.full)
