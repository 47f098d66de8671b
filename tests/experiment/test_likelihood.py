"""Likelihoods by config: what an image's number depends on, and that the three kinds agree."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.experiment import diffusion as experiment
from diffjax.experiment.likelihood import drawn_schedules, likelihood, wanted
from diffjax.models.linen import from_linen

VDM = {
    "objective": "vdm(gamma='network')",
    "schedule": "linear_log_snr(log_snr_min=-6.0, log_snr_max=13.3)",
    "parametrisation": "categorical",
}
HYBRID = {"objective": "hybrid", "schedule": "linear_beta(T=20)", "parametrisation": "eps"}


class Pixelwise(nn.Module):
    """A network that sees a pixel and the time, knows nothing at first, and compiles at once."""

    outputs: int

    def attention_blocks(self, height):
        return ()

    @nn.compact
    def __call__(self, x, t, cond=None, *, train=False):
        time = jnp.broadcast_to(t[:, None, None, None] / 1000, (*x.shape[:3], 1))
        h = jnp.tanh(nn.Dense(16, name="in")(jnp.concatenate([x, time], -1)))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros, name="out")(h)


def changed(config, kind, diffusion):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.diffusion.update(diffusion)
        config.diffusion.condition_dropout = 0.0
        config.model.update(
            multipliers=(1,), blocks=1, attention_resolutions=(), class_conditional=False, patch=2
        )
        config.evaluate.likelihood = kind
    return config


def resolved(config, kind, diffusion):
    setup = experiment.resolve(changed(config, kind, diffusion))
    return setup.with_network(from_linen(Pixelwise(setup.diffusion.outputs)))


def batch_of(setup, count, start=0):
    rows = [setup.source[i] for i in range(start, start + count)]
    return (
        {
            "image": np.stack([row["image"] for row in rows]),
            "label": np.array([row["label"] for row in rows], np.int32),
        },
        np.arange(start, start + count, dtype=np.int32),
    )


@pytest.mark.parametrize(
    ("kind", "diffusion", "parts"),
    [
        ("vdm(samples=3)", VDM, {"prior", "reconstruction", "diffusion"}),
        ("vlb", HYBRID, {"prior", "reconstruction"}),
        ("vlb(steps=5, variance='beta')", HYBRID, {"prior", "reconstruction"}),
    ],
)
def test_an_images_number_is_its_own_and_the_sum_of_its_parts(tiny_config, kind, diffusion, parts):
    setup = resolved(tiny_config, kind, diffusion)
    state = setup.init_state()
    measured = likelihood(setup, state.objective_state)
    batch, numbers = batch_of(setup, 6)
    found = measured.batch(state.params, batch, numbers)
    assert found["total"].shape == (6,)
    total = sum(found[name] for name in parts)
    if "steps" in found:
        steps = 19 if kind == "vlb" else 4
        assert found["steps"].shape == (6, steps)
        total = total + found["steps"].sum(1)
    np.testing.assert_allclose(found["total"], total, rtol=1e-5)
    # Other neighbours and another order: the same numbers, but for rounding.
    order = np.array([5, 2, 0, 1, 4, 3])
    moved = measured.batch(
        state.params, {name: x[order] for name, x in batch.items()}, numbers[order]
    )
    np.testing.assert_allclose(moved["total"], found["total"][order], rtol=1e-4)
    # What it is of: the image, not its number alone.
    batch["image"] = 255 - batch["image"]
    assert not np.allclose(measured.batch(state.params, batch, numbers)["total"], found["total"])


def test_an_untrained_network_that_knows_nothing_pays_for_every_level(tiny_config):
    # Logits are 0 at first: each of 256 levels alike, which costs 8 bits whatever the image.
    setup = resolved(tiny_config, "vdm(samples=64)", VDM)
    state = setup.init_state()
    found = likelihood(setup, state.objective_state).batch(state.params, *batch_of(setup, 16))
    mean, error = found["total"].mean(), found["total"].std() / math.sqrt(16)
    assert abs(mean - 8) < 4 * error + 0.02


def test_a_trained_models_bound_and_its_ode_bracket_each_other(tiny_config):
    config = changed(tiny_config, "ode(rtol=1e-3, atol=1e-3)", VDM)
    with config.unlocked():
        config.train.update(steps=200, batch_size=16, warmup_steps=10, learning_rate=1e-2)
    setup = experiment.resolve(config).with_network(from_linen(Pixelwise(256)))
    step = jax.jit(setup.train_step())
    state, batches = setup.init_state(), setup.batches()
    for _ in range(config.train.steps):
        state, _ = step(state, next(batches))
    batch, numbers = batch_of(setup, 32)
    exact = likelihood(setup, state.objective_state).batch(state.params, batch, numbers)
    setup.config.evaluate.likelihood = "vdm(samples=16)"
    bound = likelihood(setup, state.objective_state).batch(state.params, batch, numbers)
    assert np.isfinite(exact["total"]).all()
    gap = bound["total"] - exact["total"]
    error = gap.std() / math.sqrt(len(gap))
    # The bound is above the density that it bounds, and after training not by much.
    assert -3 * error < gap.mean() < 0.5
    assert bound["total"].mean() < 6.0  # 8 where nothing was learned
    # The learned schedule has moved between its ends, which are fixed.
    schedules = drawn_schedules(setup, state.objective_state)
    (t, learned), (_, before) = schedules.values()
    np.testing.assert_allclose(learned[[0, -1]], before[[0, -1]], atol=1e-3)
    assert np.all(np.diff(learned) < 0) and np.abs(learned - before).max() > 0.05
    assert t[0] == 0 and t[-1] == 1


@pytest.mark.parametrize(
    ("kind", "diffusion", "says"),
    [
        ("vdm", HYBRID, "continuous"),
        ("vdm", {"schedule": "rectified_flow"}, "variance preserving"),
        ("vlb", VDM, "steps"),
        ("vlb(variance='learned')", {}, "hybrid or vlb"),
        ("vlb(steps=2000)", HYBRID, "steps"),
        ("vdm", {"schedule": "linear_log_snr", "offset_noise": 0.1}, "offset noise"),
    ],
)
def test_what_has_no_likelihood_is_told_in_one_line(tiny_config, kind, diffusion, says):
    setup = resolved(tiny_config, kind, diffusion)
    learned = jax.eval_shape(lambda: setup.objective.init(jax.random.key(0), {}))
    with pytest.raises(UserError, match=says) as caught:
        likelihood(setup, jax.tree.map(lambda x: jnp.zeros(x.shape), learned))
    assert "evaluate.likelihood" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    [
        "vdn",
        "vdm(samples=0)",
        "vdm(sample=3)",
        "vlb(variance='mine')",
        "vlb(steps=-1)",
        "ode(dequantise='none')",
        "ode(divergence='guess')",
    ],
)
def test_unknown_kinds_and_arguments(tiny_config, kind):
    with tiny_config.unlocked():
        tiny_config.evaluate.likelihood = kind
    with pytest.raises(UserError, match=r"evaluate\.likelihood"):
        wanted(tiny_config)
