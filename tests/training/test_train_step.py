"""The train step: pure, the same on one device and on several, and nothing is drawn twice."""

import functools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import ema
from diffjax.augmentation import NonLeaking, choices
from diffjax.conditioning.conditions import Conditions
from diffjax.experiment import objective, optimisation, process
from diffjax.images import to_model_range
from diffjax.latent.space import PixelSpace
from diffjax.models import UNet
from diffjax.models.linen import from_linen
from diffjax.training.train_step import StepParts, init_state, make_eval_loss, make_train_step

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (8, 8, 1)
FLIP = (("flip", choices.flip),)


def smallest(config, **more):
    """The parts of a step for the least U-Net, trained as a config says."""
    width = more["non_leaking"].width if "non_leaking" in more else 0
    unet = UNet(
        base_channels=8, channel_multipliers=(1,), num_res_blocks=1, head_channels=8,
        num_classes=10, augmentation_width=width,
    )  # fmt: skip
    network, prediction = from_linen(unet), process.diffusion(config)

    def init_params(key):
        return network.init(key, jnp.zeros((1, *SHAPE)), jnp.zeros(1), None)

    return StepParts(
        init_params,
        PixelSpace(SHAPE),
        Conditions(num_classes=10, augmentation_width=width),
        objective.objective(config, prediction, network),
        optimisation.optimizer(config),
        optimisation.optimizer(config),
        functools.partial(ema.constant_decay, decay=0.9),
        seed=0,
        **more,
    )


@pytest.fixture
def pieces(tiny_config):
    tiny_config.train.update(steps=200, learning_rate=5e-3)
    parts = smallest(tiny_config)
    state = init_state(parts)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.uint8),
        "label": np.arange(4, dtype=np.int32),
    }
    return parts, state, batch


def test_uint8_spans_the_model_range():
    values = to_model_range(jnp.asarray([0, 255], jnp.uint8))
    assert values.tolist() == [-1.0, 1.0]


def test_the_step_is_a_function_of_state_and_batch(pieces):
    parts, state, batch = pieces
    step = jax.jit(make_train_step(parts))
    once, first = step(state, batch)
    again, second = step(state, batch)
    assert first["loss"] == second["loss"]
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert int(once.step) == 1
    # Another step number or seed draws other noise.
    assert step(state._replace(step=state.step + 1), batch)[1]["loss"] != first["loss"]
    other = jax.jit(make_train_step(parts._replace(seed=1)))
    assert other(state, batch)[1]["loss"] != first["loss"]


def test_training_on_one_batch_lowers_its_loss(pieces):
    parts, state, batch = pieces
    eval_loss = make_eval_loss(parts.space, parts.conditions, parts.objective, seed=0)
    before = float(eval_loss(state.params, batch))
    step = jax.jit(make_train_step(parts))
    for _ in range(150):
        state, _ = step(state, batch)
    after = float(eval_loss(state.params, batch))
    assert after < 0.8 * before
    # The average follows the parameters, with a delay.
    assert float(eval_loss(state.ema_params, batch)) < 0.9 * before


def test_the_label_reaches_the_network_unless_dropped(pieces):
    parts, state, batch = pieces
    # The head starts at zero: a network that returns zero can't show what it was told.
    params = jax.tree.map(lambda x: x + 0.05, state.params)
    state = state._replace(params=params)
    other = {**batch, "label": batch["label"][::-1].copy()}

    def losses(dropout):
        step = jax.jit(make_train_step(parts._replace(condition_dropout=dropout)))
        return [float(step(state, labelled)[1]["loss"]) for labelled in (batch, other)]

    kept, kept_other = losses(0.0)
    assert kept != kept_other
    dropped, dropped_other = losses(1.0)
    assert dropped == dropped_other


def test_flip_mirrors_some_images(pieces):
    parts, state, batch = pieces
    symmetric = {**batch, "image": np.maximum(batch["image"], batch["image"][:, :, ::-1])}

    def losses(flip):
        augmentations = FLIP if flip else ()
        step = jax.jit(make_train_step(parts._replace(augmentations=augmentations)))
        return [float(step(state, images)[1]["loss"]) for images in (batch, symmetric)]

    (flipped, flipped_symmetric), (as_is, as_is_symmetric) = losses(True), losses(False)
    assert flipped != as_is
    assert flipped_symmetric == as_is_symmetric


def test_the_network_is_given_what_was_done_to_an_image(tiny_config, pieces):
    """The weights of the augmentation's parameters change a training loss, and no held-out one."""
    _, _, batch = pieces
    parts = smallest(tiny_config, non_leaking=NonLeaking(1.0))
    state = init_state(parts)
    hearing = jax.tree.map(lambda x: x + 0.05, state.params)
    kernel = hearing["augmentation"]["kernel"]
    assert kernel.shape == (9, 32)
    deaf = {**hearing, "augmentation": {"kernel": jnp.zeros_like(kernel)}}
    step = jax.jit(make_train_step(parts))
    losses = [float(step(state._replace(params=p), batch)[1]["loss"]) for p in (hearing, deaf)]
    assert losses[0] != losses[1]
    eval_loss = make_eval_loss(parts.space, parts.conditions, parts.objective, seed=0)
    assert float(eval_loss(hearing, batch)) == float(eval_loss(deaf, batch))


AUGMENTED = (
    *FLIP, ("augment_crop", choices.crop), ("augment_rotate90", choices.rotate90),
    ("augment_colour", choices.colour),
)  # fmt: skip


def test_augmented_steps_go_on_exactly(tiny_config, pieces):
    """What is done to an image follows from seed, step and place: nothing is carried along."""
    _, _, batch = pieces
    parts = smallest(tiny_config, augmentations=AUGMENTED, non_leaking=NonLeaking(0.5))
    step = jax.jit(make_train_step(parts))

    def run(state, steps):
        for _ in range(steps):
            state, metrics = step(state, batch)
        return state, float(metrics["loss"])

    whole, loss = run(init_state(parts), 4)
    half, _ = run(init_state(parts), 2)
    stored = jax.tree.map(np.asarray, half)  # as a checkpoint: arrays, and nothing else
    resumed, same = run(jax.tree.map(jnp.asarray, stored), 2)
    assert loss == same
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


DEVICES = textwrap.dedent(
    """
    import json, sys
    import jax, numpy as np
    from diffjax.experiment import schema
    from diffjax.distributed import processes
    from diffjax.distributed.strategy import DataParallel
    from diffjax.training.train_step import StepParts, init_state, make_eval_loss, make_train_step
    from tests.training.test_train_step import FLIP, smallest
    import runpy

    config = schema.complete(runpy.run_path(sys.argv[1])["get_config"]())
    parts = smallest(config, condition_dropout=0.3, augmentations=FLIP)
    reports = []
    for devices in (jax.devices()[:1], jax.devices()):
        processes.devices = lambda: devices
        strategy = DataParallel()
        step = strategy.compile(make_train_step(parts))
        state = strategy.shard_state(init_state(parts))
        rng = np.random.default_rng(0)
        losses = []
        for _ in range(4):
            batch = {"image": rng.integers(0, 256, (8, 8, 8, 1)).astype(np.uint8),
                     "label": rng.integers(0, 10, 8).astype(np.int32)}
            state, metrics = step(state, strategy.shard_batch(batch))
            losses.append(strategy.scalars(metrics)["loss"])
        for x in jax.tree.leaves(state.params):
            copies = [np.asarray(shard.data) for shard in x.addressable_shards]
            assert len(copies) == len(devices) and all((c == copies[0]).all() for c in copies)
        reports.append({"devices": len(strategy.devices), "losses": losses})
    print(json.dumps(reports))
    """
)


@pytest.mark.slow
def test_one_and_four_devices_give_the_same_losses(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, str(ROOT / "experiments/digits.py")],
        env={"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
             "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout.splitlines()[-1])
    assert [report["devices"] for report in reports] == [1, 4]
    np.testing.assert_allclose(reports[0]["losses"], reports[1]["losses"], rtol=1e-5)
