"""`config.model.name = "edm2"`: its fields, its units of time, and what it refuses."""

import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.conditioning.conditions import Conditions
from diffjax.errors import UserError
from diffjax.experiment import backbones, network, optimisation, process, schema
from diffjax.experiment import diffusion as experiment
from diffjax.training.distribution_matching_objective import DistributionMatchingObjective
from tests.weights import normal_like

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tiny_config):
    fields = ("name", "channels", "head_channels", "class_conditional")
    tiny_config.model = {k: tiny_config.model[k] for k in fields} | {"name": "edm2"}
    tiny_config.model.update(attention_resolutions=(4,), multipliers=(1, 2), blocks=1)
    return schema.complete(tiny_config)


def built(config, **conditions):
    return network.network(
        config, diffusion=process.diffusion(config), shape=(8, 8, 1),
        conditions=Conditions(num_classes=10, **conditions),
    )  # fmt: skip


@pytest.mark.parametrize("variant", ["", "quick"])
def test_the_experiment_is_of_the_network(variant):
    path = ROOT / "experiments/fashion_mnist_edm2.py"
    made = schema.complete(runpy.run_path(str(path))["get_config"](variant))
    schema.check(made)
    module = built(made).module
    assert module.bandwidth == 1.0 and module.num_classes == 10
    assert process.diffusion(made).parametrisation.name == "edm"
    assert optimisation.average_decay(made)(jnp.array(10)) < 1


def test_its_train_step_projects_the_weights(config):
    setup = experiment.resolve(config)
    assert not hasattr(setup.objective, "project")
    moved = setup.parts.project(normal_like(setup.state_shapes().params, scale=3.0))
    kernel = np.asarray(moved["stem"]["kernel"]).reshape(-1, 8)
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), len(kernel) ** 0.5, rtol=1e-3)


def test_so_does_that_of_the_fake_denoiser_in_distribution_matching(config):
    """The objective's network, which is trained like the model, is kept on the same set."""
    fields = dict.fromkeys(DistributionMatchingObjective._fields)
    network = experiment.resolve(config).network
    objective = DistributionMatchingObjective(**{**fields, "network": network})
    weights = {"kernel": jnp.full((4, 2), 5.0)}
    found = objective.project({"fake": weights, "discriminator": weights})
    np.testing.assert_allclose(found["fake"]["kernel"], 1.0, rtol=1e-3)
    np.testing.assert_array_equal(found["discriminator"]["kernel"], weights["kernel"])


@pytest.mark.parametrize(
    "changes, bandwidth",
    [
        ({}, 0.003),
        ({"parametrisation": "edm"}, 1.0),
        ({"time_input": "unit"}, 3.0),
        ({"time_input": "log_sigma"}, 1.0),
    ],
)
def test_frequencies_are_those_of_the_time_input(config, changes, bandwidth):
    config.diffusion.update(changes)
    assert built(config).module.bandwidth == bandwidth
    config.model.bandwidth = 0.5
    assert built(config).module.bandwidth == 0.5


@pytest.mark.parametrize(
    "given, key",
    [
        ("text_width", "condition.text"),
        ("embedding_width", "condition.embedding"),
        ("augmentation_width", "diffusion.augment"),
        ("map_level", "condition.map"),
        ("spans", "diffusion.parametrisation"),
        ("num_pixel_levels", "diffusion.parametrisation"),
    ],
)
def test_what_the_network_does_not_take_is_refused_in_one_line(config, given, key):
    others = dict.fromkeys(
        ("text_width", "embedding_width", "augmentation_width", "map_level", "spans"), 0
    )
    with pytest.raises(UserError, match=rf"'edm2' takes .*: set config\.{key} to") as caught:
        backbones.edm2(config, {"num_pixel_levels": 0, **others, given: 2})
    assert "\n" not in str(caught.value)


def test_augmentation_parameters_are_refused_before_training(config):
    with pytest.raises(UserError, match=r"set config\.diffusion\.augment to 'none'"):
        built(config, augmentation_width=9)


def test_the_inverse_square_root_is_constant_and_then_falls(tiny_config):
    """Karras et al. 2024, section 2.3: by hand for a peak of 0.01 and 400 reference steps."""
    tiny_config.train.update(
        schedule="inverse_sqrt(reference=400)", learning_rate=0.01, warmup_steps=0, steps=10_000
    )
    rate = optimisation.learning_rate(tiny_config)
    found = [float(rate(step)) for step in (0, 400, 1600, 10_000)]
    np.testing.assert_allclose(found, [0.01, 0.01, 0.005, 0.002], rtol=1e-6)
    tiny_config.train.warmup_steps = 100
    rate = optimisation.learning_rate(tiny_config)
    np.testing.assert_allclose([rate(50), rate(500), rate(1700)], [0.005, 0.01, 0.005], rtol=1e-6)
    tiny_config.train.schedule = "inverse_sqrt(reference=0)"
    with pytest.raises(UserError, match="reference must be at least 1 step, not 0"):
        optimisation.learning_rate(tiny_config)
