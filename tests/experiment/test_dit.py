"""`config.model.name = "dit"`: what goes with it, and a run of a few steps."""

import jax
import numpy as np
import pytest

from diffjax.conditioning.conditions import Conditions
from diffjax.errors import UserError
from diffjax.experiment import backbones, defaults, network, process, schema
from diffjax.models.dit import DiT
from diffjax.models.ops import XLA

pytestmark = pytest.mark.usefixtures("compile_quickly")
SMALL = {"width": 16, "depth": 2, "head_channels": 8, "dtype": "float32"}


def config_of(**diffusion):
    config = defaults.diffusion()
    config.data.name = "digits"
    config.model.name = "dit"
    config.model.update(SMALL)
    config.diffusion.update(diffusion)
    return schema.complete(config)


TEN = Conditions(num_classes=10)


def made(config, conditions=TEN, shape=(8, 8, 1), **options):
    diffusion = process.diffusion(config)
    found = network.network(
        config, diffusion=diffusion, shape=shape, conditions=conditions, **options
    )
    network.check(found, config=config, diffusion=diffusion, shape=shape, cond=conditions.example())
    return found


@pytest.mark.parametrize(
    "diffusion",
    [
        {"objective": "hybrid"},
        {"self_conditioning": 0.5},
        {"parametrisation": "average_velocity", "schedule": "rectified_flow",
         "objective": "mean_flow"},
        {"parametrisation": "edm", "schedule": "karras"},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_it_goes_with_every_prediction(diffusion):
    found = made(config_of(**diffusion))
    assert isinstance(found.module, DiT)
    assert found.module.spans == ("average" in diffusion.get("parametrisation", ""))


def test_it_can_be_perturbed():
    found = made(config_of())
    assert found.attention_blocks((8, 8, 1)) == ("block_0", "block_1")
    assert found.perturbed(("block_1",)).module.perturbed == ("block_1",)


def test_levels_are_refused():
    config = config_of(parametrisation="categorical", objective="hybrid")
    with pytest.raises(UserError, match="'dit' predicts no levels: use a"):
        made(config)


def test_a_field_that_does_not_fit_is_one_line():
    config = config_of()
    config.model.head_channels = 12
    with pytest.raises(UserError, match=r"^config.model: .* head_channels must divide width$"):
        made(config)


@pytest.mark.parametrize(("key", "value"), [("mlp", "relu"), ("norm", "batch")])
def test_unknown_parts(key, value):
    config = config_of()
    config.model[key] = value
    with pytest.raises(UserError, match=f"config.model.{key} = '{value}'"):
        made(config)


def test_attention_is_that_of_the_kernels():
    config = config_of()

    def own(q, k, v):
        return v

    assert backbones.attention(config, XLA._replace(attention=own)) is own
    config.model.attention = "linear"
    assert backbones.attention(config, XLA._replace(attention=own)) is not own


def test_resolutions_other_than_the_trained_one():
    found = made(config_of())
    x = np.zeros((2, 8, 8, 1), np.float32)
    params = found.init(jax.random.key(0), x, np.zeros(2), None)
    larger = found.apply(params, np.zeros((2, 12, 9, 1), np.float32), np.zeros(2), None)
    assert larger.shape == (2, 12, 9, 1)
