"""Parameters that are kept on a set: the step projects them, with EDM2's U-Net as the case."""

import functools
import json
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from diffjax import ema
from diffjax.conditioning.conditions import Conditions
from diffjax.experiment import objective, process, schema
from diffjax.latent.space import PixelSpace
from diffjax.models.edm2 import EDM2UNet
from diffjax.models.linen import from_linen
from diffjax.training.train_step import StepParts, init_state, make_train_step
from tests.models.test_edm2 import magnitudes

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (8, 8, 1)


def parts_of(config, *, network=None, learning_rate=3e-2, **more):
    """The parts of a step for a small magnitude-preserving U-Net."""
    config.diffusion.update(parametrisation="edm(sigma_data=0.85)", learned_weighting=True)
    config.diffusion.schedule = "karras"
    network = network or from_linen(
        EDM2UNet(base_channels=16, channel_multipliers=(1,), num_res_blocks=1, head_channels=16)
    )
    optimizer = optax.adam(learning_rate)
    return StepParts(
        lambda key: network.init(key, jnp.zeros((1, *SHAPE)), jnp.zeros(1), None),
        PixelSpace(SHAPE),
        Conditions(),
        objective.objective(config, process.diffusion(config), network),
        optimizer,
        optimizer,
        functools.partial(ema.constant_decay, decay=0.9),
        seed=0,
        project=network.project,
        **more,
    )


def batch_of(step, count=8):
    draw = np.random.default_rng(step)
    return {"image": draw.integers(0, 256, (count, *SHAPE)).astype(np.uint8)}


def run(step, state, first, last):
    for i in range(first, last):
        state, metrics = step(state, batch_of(i))
    return state, float(metrics["loss"])


def assert_unit(params):
    """Every weight's norm over all but its last axis is the root of its number of inputs."""
    weights = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    assert len(weights) > 20
    for leaf in weights:
        inputs = np.asarray(leaf).reshape(-1, leaf.shape[-1])
        norms = np.linalg.norm(inputs, axis=0)
        np.testing.assert_allclose(norms, len(inputs) ** 0.5, rtol=3e-4)


@pytest.fixture
def compiled(tiny_config):
    parts = parts_of(tiny_config)
    return parts, jax.jit(make_train_step(parts))


def test_weights_are_projected_at_first_and_after_every_step(compiled):
    parts, step = compiled
    state = init_state(parts)
    assert_unit(state.params)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema_params)
    for i in range(3):
        before = state
        state, _ = run(step, state, i, i + 1)
        assert_unit(state.params)
        # The average is of what was projected.
        jax.tree.map(
            lambda old, new, average: np.testing.assert_allclose(
                average, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-6
            ),
            before.ema_params, state.params, state.ema_params,
        )  # fmt: skip


def test_the_projection_touches_no_moments_and_goes_on_exactly(compiled, tiny_config):
    parts, step = compiled
    whole, loss = run(step, init_state(parts), 0, 4)
    half, _ = run(step, init_state(parts), 0, 2)
    stored = jax.tree.map(np.asarray, half)  # as a checkpoint: arrays, and nothing else
    resumed, same = run(step, jax.tree.map(jnp.asarray, stored), 2, 4)
    assert loss == same
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    # One step from the same state without it: moments are the same, and weights are not.
    free = jax.jit(make_train_step(parts._replace(project=None)))
    one, _ = run(step, half, 2, 3)
    other, _ = run(free, half, 2, 3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
        one.opt_state, other.opt_state,
    )  # fmt: skip
    projected = parts.project(other.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one.params, projected
    )
    assert not np.allclose(other.params["stem"]["kernel"], one.params["stem"]["kernel"], atol=1e-4)


@pytest.mark.slow
def test_magnitudes_stay_bounded_in_training():
    """Digits, 100 and 200 steps. The encoder, whose blocks begin with a normalisation, stays within
    a third of 1. What a decoder's blocks add is no longer independent of what they add it to, by
    which each may grow by 1 / hypot(0.7, 0.3) = 1.31; it comes to 3 or 4, and stays there."""
    config = schema.complete(runpy.run_path(str(ROOT / "experiments/digits.py"))["get_config"]())
    digits = (load_digits().images * 255 / 16).astype(np.uint8)[..., None]
    network = from_linen(
        EDM2UNet(base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1, head_channels=32)
    )
    parts = parts_of(config, network=network, learning_rate=3e-3)
    step, state = jax.jit(make_train_step(parts)), init_state(parts)
    x, t = jax.random.normal(jax.random.key(0), (64, *SHAPE)), jnp.linspace(-1.0, 1.0, 64)
    of = magnitudes(network.module, x, t, None)
    losses, found = [], {}
    for i in range(201):
        if i in (100, 200):
            found[i] = of(state.params)
        rows = np.random.default_rng(i).integers(0, len(digits), 32)
        state, metrics = step(state, {"image": digits[rows]})
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])
    assert_unit(state.params)
    for name, magnitude in found[200].items():
        if name.startswith("down"):
            assert abs(magnitude - 1) < 1 / 3, (name, magnitude)
        assert 0.7 < magnitude < 4.5 and magnitude < 1.15 * found[100][name], (name, magnitude)


DEVICES = textwrap.dedent(
    """
    import json, runpy, sys
    import jax, numpy as np
    from diffjax.distributed import fsdp, processes
    from diffjax.distributed.strategy import DataParallel
    from diffjax.experiment import schema
    from diffjax.training.train_step import init_state, make_train_step, state_shapes
    from tests.training.test_projection import assert_unit, batch_of, parts_of

    every, reports = jax.devices(), []
    for name, devices, accumulate in (
        ("one", every[:1], 1), ("pmap", every, 1), ("fsdp", every, 1), ("fsdp", every, 2),
    ):
        config = schema.complete(runpy.run_path(sys.argv[1])["get_config"]())
        parts = parts_of(config, accumulate=accumulate)
        processes.devices = lambda: devices
        strategy = fsdp.Fsdp(min_size=100) if name == "fsdp" else DataParallel()
        step = strategy.compile(make_train_step(parts))
        state = init_state(parts, shardings=strategy.shardings(state_shapes(parts)))
        losses = []
        for i in range(3):
            state, metrics = step(state, strategy.shard_batch(batch_of(i)))
            losses.append(float(np.ravel(metrics["loss"])[0]))
        cut = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params))
        params = jax.tree.map(np.asarray, state.params)
        assert_unit(params)
        total = sum(float(np.abs(x).sum()) for x in jax.tree.leaves(params))
        reports.append({"name": name, "losses": losses, "cut": cut, "total": total})
    print(json.dumps(reports))
    """
)


@pytest.mark.slow
def test_devices_that_share_the_weights_project_the_same(tmp_path):
    """Norms of a weight that is cut among devices are those of the whole."""
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, str(ROOT / "experiments/digits.py")],
        env={"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
             "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, *others = json.loads(done.stdout.splitlines()[-1])
    assert one["cut"] == 0 and others[1]["cut"] > 20 and others[2]["cut"] > 20
    for other in others:
        np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-4)
        np.testing.assert_allclose(one["total"], other["total"], rtol=1e-4)
