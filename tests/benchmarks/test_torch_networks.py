"""The network that diffjax is compared with is the same network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cases
from diffjax import parametrisations
from diffjax.conditioning.conditions import Conditions
from diffjax.experiment import network, process
from diffjax.schedules import Scales

torch = pytest.importorskip("torch", reason="the other side of the benchmark")
from benchmarks import torch_side  # noqa: E402


def networks(config, image_shape):
    num_classes = cases.NUM_CLASSES if config.model.class_conditional else 0
    ours = network.network(
        config, diffusion=process.diffusion(config), shape=image_shape,
        conditions=Conditions(num_classes),
    )  # fmt: skip
    theirs = torch_side.NETWORKS[config.model.name](
        config.model, image_shape=image_shape, num_classes=cases.NUM_CLASSES
    )
    return ours, theirs


def shapes(network, image_shape):
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    return jax.eval_shape(network.init, jax.random.key(0), x, t, None)


def copy(params, network):
    """Flax parameters into the modules of the same names; every one must be met once."""
    left = dict(network.named_parameters())
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        *modules, leaf = [entry.key for entry in path]
        weight, value = "bias" if leaf == "bias" else "weight", np.asarray(value)
        if modules[0] == "blocks":  # one layer of several, stacked
            named = [(f"blocks.{i}.{'.'.join(modules[1:])}", one) for i, one in enumerate(value)]
        else:
            named = [(".".join(modules), value)]
        for name, one in named:
            names = [f"{where}{name}.{weight}" for where in ("", "layers.", "embedding.")]
            parameter = left.pop(next(n for n in names if n in left))
            if leaf == "kernel":
                one = one.transpose(3, 2, 0, 1) if one.ndim == 4 else one.T
            with torch.no_grad():
                parameter.copy_(torch.tensor(one).reshape(parameter.shape))
    assert not left


@pytest.mark.parametrize("name", cases.CASES)
def test_both_have_as_many_parameters(name):
    case = cases.load(name, "cpu")
    side = cases.Side("diffjax", "xla", "float32")
    ours, theirs = networks(cases.config_of(case, side), case.image_shape)
    count = sum(x.size for x in jax.tree.leaves(shapes(ours, case.image_shape)))
    assert sum(p.numel() for p in theirs.parameters()) == pytest.approx(count, rel=0.01)
    if name == "cifar10":
        assert count == pytest.approx(35.7e6, rel=0.01)  # Ho et al. 2020, appendix B


@pytest.mark.parametrize(
    ("image_shape", "changes"),
    [
        ((8, 8, 1), {"class_conditional": False}),
        ((8, 8, 3), {"scale_shift": False, "multipliers": (1, 3), "blocks": 2}),
        ((7, 5, 3), {"patch": 2, "attention_resolutions": (4,)}),
        ((7, 6, 1), {"attention_resolutions": (7,), "channels": 24}),
    ],
    ids=str,
)
def test_outputs_of_the_unet_are_equal(image_shape, changes, tiny_config):
    config = tiny_config.unlock()
    config.model.update(
        {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (),
         "patch": 1, "head_channels": 8, "scale_shift": True, "block": "resnet",
         "attention": "softmax", "class_conditional": True, "dtype": "float32"} | changes
    )  # fmt: skip
    assert_outputs_are_equal(config, image_shape)


@pytest.mark.parametrize(
    ("image_shape", "changes"),
    [((8, 8, 1), {"class_conditional": False}), ((7, 6, 3), {"patch": 3, "depth": 3})],
    ids=str,
)
def test_outputs_of_the_transformer_are_equal(image_shape, changes):
    config = cases.load("dit", "cpu").config
    config.model.update(
        {"width": 32, "depth": 2, "head_channels": 8, "class_conditional": True,
         "dtype": "float32", "kernels": "xla"} | changes
    )  # fmt: skip
    assert_outputs_are_equal(config, image_shape)


def assert_outputs_are_equal(config, image_shape):
    ours, theirs = networks(config, image_shape)
    leaves, tree = jax.tree.flatten(shapes(ours, image_shape))
    draw = np.random.default_rng(0)
    params = tree.unflatten([0.2 * draw.standard_normal(x.shape, np.float32) for x in leaves])
    copy(params, theirs)

    x, t = draw.standard_normal((3, *image_shape), np.float32), np.array([1.0, 500.0, 999.0])
    labels = np.array([0, 9, -1]) if config.model.class_conditional else None
    wanted = jax.jit(ours.apply)(params, x, jnp.asarray(t), labels)
    theirs = theirs.to(memory_format=torch.channels_last).eval()
    with torch.inference_mode():
        found = theirs(
            torch.tensor(x).permute(0, 3, 1, 2),
            torch.tensor(t),
            None if labels is None else torch.tensor(labels),
        )
    found = found.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", torch_side.PARAMETRISATIONS)
def test_its_parametrisations_are_diffjaxs(name):
    ours, theirs = getattr(parametrisations, name), torch_side.PARAMETRISATIONS[name]
    x_0, eps = (torch.tensor(np.random.default_rng(i).standard_normal((3, 2))) for i in range(2))
    scales = Scales(torch.tensor(0.8), torch.tensor(0.6))
    x_t = 0.8 * x_0 + 0.6 * eps
    target = theirs.target(x_0, eps, scales)
    as_jax = [jnp.asarray(x.numpy()) for x in (x_0, eps, target, x_t)]
    pair = Scales(jnp.float32(0.8), jnp.float32(0.6))
    np.testing.assert_allclose(target, ours.target(*as_jax[:2], pair), atol=1e-6)
    wanted = ours.estimates(*as_jax[2:], pair)[:2]
    for found, known in zip(theirs.estimates(target, x_t, scales), wanted, strict=True):
        np.testing.assert_allclose(found, known, atol=1e-6)


@pytest.mark.parametrize("task", [torch_side.train, torch_side.sample])
def test_it_trains_and_samples_in_another_parametrisation_than_its_loss(task):
    case = cases.load("smoke", "cpu")
    case.config.diffusion.update(parametrisation="x0", loss_target="v")
    case.config.sample.steps = 2
    workload = task(case, cases.Side("pytorch", "eager", "float32"), "cpu")
    workload.step()
    workload.wait()
    assert workload.parameters > 1000
