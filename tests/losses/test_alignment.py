"""Representation alignment: the loss by known angles, and the block that an objective reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import parametrisations, schedules
from diffjax.errors import UserError
from diffjax.experiment import alignment, defaults
from diffjax.losses.alignment import alignment_loss
from diffjax.losses.time_sampling import uniform
from diffjax.models import UNet
from diffjax.models.dit import DiT
from diffjax.models.network import Pair, as_network
from diffjax.models.projector import Projector
from diffjax.perceptual import FeatureNetwork
from diffjax.prediction import Prediction
from diffjax.training.aligned_objective import AlignedObjective
from diffjax.training.denoising_objective import DenoisingObjective
from diffjax.training.objective import LossInputs

pytestmark = pytest.mark.usefixtures("compile_quickly")
PREDICTION = Prediction(schedules.rectified_flow(), parametrisations.velocity)
SMALL = DiT(width=16, depth=3, head_channels=8, num_classes=2, class_tokens=2, class_tokens_from=1)
X = jax.random.normal(jax.random.key(0), (4, 6, 5, 1))
LABELS = jnp.array([0, 1, 0, 1])


def test_it_is_minus_the_cosine_of_the_angle():
    angles = np.array([0.0, np.pi / 3, np.pi / 2, np.pi])
    features = np.zeros((4, 2, 3, 2), np.float32)
    features[..., 0] = 7.0
    turned = np.stack([np.cos(angles), np.sin(angles)], -1)[:, None, None]
    projected = jnp.broadcast_to(0.1 * turned.astype(np.float32), (4, 2, 3, 2))
    np.testing.assert_allclose(
        alignment_loss(projected, jnp.asarray(features)), [-1, -0.5, 0, 1], atol=1e-6
    )
    assert np.isfinite(
        jax.grad(lambda x: alignment_loss(x, jnp.asarray(features)).sum())(0 * projected)
    ).all()


def test_features_of_another_resolution_are_brought_to_the_tokens():
    flat = jnp.ones((1, 7, 3, 4)) * jnp.array([1.0, -2.0, 0.5, 3.0])
    np.testing.assert_allclose(alignment_loss(jnp.tile(flat[:, :1, :1], (1, 2, 5, 1)), flat), -1)


def powers(x):
    return jnp.concatenate([x, x**2, x**3], axis=-1)


def objective_of(module, *, block, weight=0.5, features=powers):
    network = as_network(module)
    base = DenoisingObjective(network, PREDICTION, uniform)
    channels = 16
    return AlignedObjective(base, features, block, channels, Projector(8, 3), weight)


def inputs():
    def key(name):
        return jax.random.fold_in(jax.random.key(3), sum(map(ord, name)))

    return LossInputs(X, LABELS, key, jnp.arange(4), 4, jnp.zeros((), jnp.int32))


def compiled(objective, state):
    return jax.jit(lambda params: objective.loss_and_grads(params, state, inputs()))


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(as_network(SMALL).init, jax.random.key(1), X, jnp.zeros(4), LABELS)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return tree.unflatten(
        [0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


def test_the_gradients_are_those_of_the_sum_of_both_losses(params):
    heavy, light = (objective_of(SMALL, block="block_1", weight=w) for w in (0.5, 1e-9))
    state = heavy.init(jax.random.key(4), params)
    of_heavy = compiled(heavy, state)
    found, plain = of_heavy(params), compiled(light, state)(params)
    denoising = heavy.denoising
    base = compiled(denoising, denoising.init(jax.random.key(4), params))(params)
    np.testing.assert_allclose(found.loss, base.loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain.grads, base.grads
    )
    # The rest is the slope of the alignment along any direction, by a difference quotient.
    more = jax.tree.map(lambda a, b: a - b, found.grads, plain.grads)
    along = jax.tree.map(lambda a: jnp.sign(a) * (jnp.abs(a) > 0), more)
    step = 1e-3

    def aligned_at(s):
        moved = jax.tree.map(lambda p, d: p + s * d, params, along)
        return of_heavy(moved).metrics["alignment"]

    quotient = (aligned_at(step) - aligned_at(-step)) / (2 * step)
    slope = sum(jnp.vdot(a, d) for a, d in zip(*map(jax.tree.leaves, (more, along)), strict=True))
    np.testing.assert_allclose(slope, 0.5 * quotient, rtol=0.05)


def test_only_the_blocks_before_the_aligned_one_hear_of_it(params):
    aligned = objective_of(SMALL, block="block_1", weight=0.5)
    light = aligned._replace(weight=1e-9)
    state = aligned.init(jax.random.key(4), params)
    one, other = (compiled(o, state)(params).grads for o in (aligned, light))
    change = jax.tree.map(lambda a, b: np.abs(a - b), one, other)
    assert change["blocks"]["qkv"]["kernel"].max() > 1e-6  # block_0
    assert change["joined"]["qkv"]["kernel"][0].max() > 1e-6  # block_1
    assert change["joined"]["qkv"]["kernel"][1].max() < 1e-6  # block_2
    assert change["head"]["kernel"].max() < 1e-6


def test_a_block_s_map_is_of_its_patches_alone(params):
    network = as_network(SMALL)
    for block in ("block_0", "block_2"):
        output, found = network.apply_with_block(params, X, jnp.zeros(4), LABELS, block=block)
        assert found.shape == (4, 3, 3, 16)
        np.testing.assert_array_equal(output, network.apply(params, X, jnp.zeros(4), LABELS))
    with pytest.raises(ValueError, match="'block_3' is not among block_0 to block_2"):
        network.apply_with_block(params, X, jnp.zeros(4), LABELS, block="block_3")


def test_a_unet_s_block_is_one_of_its_layers():
    network = as_network(
        UNet(base_channels=8, channel_multipliers=(1,), num_res_blocks=1, head_channels=8)
    )
    params = network.init(jax.random.key(0), X, jnp.zeros(4), None)
    _, found = network.apply_with_block(params, X, jnp.zeros(4), None, block="middle_0")
    assert found.shape == (4, 6, 5, 8)
    with pytest.raises(ValueError, match="there is no block 'block_0' in a UNet"):
        network.apply_with_block(params, X, jnp.zeros(4), None, block="block_0")


def edges(params, x):
    return (x - jnp.roll(x, 1, axis=1), x[:, ::2, ::2])


FEATURES = f"{__name__}:features"


def features():
    return FeatureNetwork("edges", (), edges)


def made(network, **options):
    config = defaults.diffusion()
    for key in ("diffusion.self_conditioning", "first_stage.workdir", "model.name"):
        if key in options:
            section, name = key.split(".")
            config[section][name] = options.pop(key)
    base = DenoisingObjective(
        network, PREDICTION, uniform, self_conditioning=config.diffusion.self_conditioning
    )
    return alignment.aligned(**{"features": FEATURES, "block": "block_1"} | options)(
        config, base, (6, 5, 1)
    )


def test_a_config_makes_one():
    found = made(as_network(SMALL), weight=0.25, layer=1, side=10)
    assert (found.channels, found.weight, found.projector.hidden) == (16, 0.25, 32)
    assert found.features(X).shape == (4, 6, 5, 1)  # 12 x 10 at every second place: 6 x 5


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (as_network(SMALL), {"diffusion.self_conditioning": 0.5}, "= 0.5: set it to 0"),
        (as_network(SMALL), {"first_stage.workdir": "there"}, "use a model of pixels"),
        (as_network(SMALL), {"block": "block_9"}, "'block_9' is not among block_0 to block_2"),
        (as_network(SMALL), {"layer": 2}, "layer = 2: edges has 2 maps"),
        (Pair(lambda *a: (), lambda *a, **k: X), {"model.name": "mine:Net"}, "reads a block"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(network, options, message):
    with pytest.raises(UserError, match=message) as error:
        made(network, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"side": -1}, {"features": "none"}])
def test_values_out_of_range(options):
    with pytest.raises(ValueError, match=r"must be above 0|features = 'none'"):
        made(as_network(SMALL), **options)
