"""What a run does about faults around it: numbers, images, disks, and processes that are killed."""

import json
import logging
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from diffjax import data
from diffjax.checkpoints import workdir
from diffjax.checkpoints.lock import lock
from diffjax.checkpoints.store import Checkpoints
from diffjax.errors import UserError
from diffjax.experiment import optimisation, run, strategies
from diffjax.experiment.schema import check
from diffjax.training import loop
from diffjax.training.logs import read_rows
from diffjax.training.not_finite import FILE, KEPT, NotFinite, skipping
from diffjax.training.prefetch import Prefetcher


class State(NamedTuple):
    step: jax.Array
    params: jax.Array
    opt_state: object
    ema_params: jax.Array


class Line:
    """A linear fit by Adam as a `TrainingTask`, which compiles in no time.

    Attributes:
      poison: steps, from 1, whose update and loss are NaN.
    """

    kernels = SimpleNamespace(line="no kernels")
    identity = workdir.NOTHING

    def __init__(self, config=None, *, poison=()):
        pixels = np.random.default_rng(0).integers(0, 256, (50, 1, 3, 1), np.uint8)
        self.config, self.poison = config, sorted(poison)
        self.source = data.ArraySource(pixels, name="fifty")
        self.adam = optax.adam(0.1)

    @property
    def about_data(self):
        return data.describe(self.source).to_json()

    @property
    def settings(self):
        return optimisation.loop_settings(self.config)

    @property
    def config_dict(self):
        return self.config.to_dict()

    @property
    def description(self):
        return f"{len(self.source)} examples"

    def owns(self, folder):
        return run.owns(self, folder)

    def strategy(self):
        return strategies.strategy(self.config)

    def learning_rate(self):
        return optimisation.learning_rate(self.config)

    def to_compute(self, tree):
        return tree

    def init_state(self, *, shardings=None):
        w = jnp.ones(3)
        return State(jnp.int32(0), w, self.adam.init(w), jnp.ones(3))

    def read_start(self):
        return None

    def state_shapes(self):
        return jax.eval_shape(self.init_state)

    def batches(self):
        return data.batches(self.source, batch_size=16, seed=3)

    def held_out(self):
        return [{"image": self.source.images[:10]}]

    def loss(self, w, batch):
        x = batch["image"].reshape(-1, 3) / 255.0
        return jnp.mean((x @ w - 1.0) ** 2)

    def eval_loss(self):
        return jax.jit(self.loss)

    def train_step(self):
        def step(state, batch):
            loss, grad = jax.value_and_grad(self.loss)(state.params, batch)
            updates, opt_state = self.adam.update(grad, state.opt_state)
            hit = jnp.isin(state.step + 1, jnp.array(self.poison or [-1]))
            bad = jnp.where(hit, jnp.nan, 0.0)
            w = optax.apply_updates(state.params, updates) + bad
            new = State(state.step + 1, w, opt_state, 0.5 * (state.ema_params + w))
            return new, {"loss": loss + bad, "grad_norm": jnp.linalg.norm(grad)}

        return step

    def averaged(self, state):
        return state.ema_params

    def before_save(self, state):
        return state

    def to_stored(self, state):
        return state

    def from_stored(self, stored):
        return stored

    def power_emas(self, stored):
        return {0.1: stored.ema_params}

    def write_final_pictures(self, averaged, folder, *, log):
        pass


def test_a_step_that_is_left_out_leaves_what_not_taking_it_leaves():
    line = Line()
    state, train_step = line.init_state(), line.train_step()
    batches = np.random.default_rng(0).uniform(0, 255, (4, 5, 3)).astype(np.float32)
    bad = batches[1].copy()
    bad[2, 1] = np.inf
    step = jax.jit(skipping(train_step))
    skipped = []
    with_bad = without = state
    for batch in (batches[0], bad, batches[2], batches[3]):
        with_bad, metrics = step(with_bad, {"image": batch})
        skipped.append(float(metrics["skipped"]))
    for batch in batches[[0, 2, 3]]:
        without, _ = jax.jit(train_step)(without, {"image": batch})
    assert skipped == [0, 1, 0, 0]
    assert int(with_bad.step) == 4 and int(without.step) == 3
    jax.tree.map(np.testing.assert_allclose, with_bad[1:], without[1:])


def test_a_gradient_alone_is_enough_to_leave_a_step_out():
    state = Line().init_state()

    def overflow(state, batch):
        return state._replace(step=state.step + 1, params=state.params * jnp.inf), {
            "loss": jnp.float32(1.0), "grad_norm": jnp.float32(jnp.inf),
        }  # fmt: skip

    new, metrics = skipping(overflow)(state, None)
    np.testing.assert_array_equal(new.params, state.params)
    assert metrics["skipped"] == 1 and new.step == 1


@pytest.fixture
def source():
    pixels = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    return data.ArraySource(pixels, name="twenty")


def test_the_examples_are_those_of_the_batch_also_after_going_on(source, tmp_path):
    batches = data.batches(source, batch_size=6, seed=3)
    drawn = [next(batches)["image"].ravel().tolist() for _ in range(9)]
    again = data.batches(source, batch_size=6, seed=3)
    record = NotFinite(tmp_path, start=0, position=again.get_state())
    assert [record.examples(step) for step in range(1, 10)] == drawn
    for _ in range(4):
        next(again)
    record = NotFinite(tmp_path, start=4, position=again.get_state())
    assert [record.examples(step) for step in range(5, 10)] == drawn[4:]


def test_the_record_keeps_the_last_steps_and_forgets_those_taken_again(source, tmp_path):
    position = data.batches(source, batch_size=2, seed=0).get_state()
    record = NotFinite(tmp_path, start=0, position=position)
    for step in range(1, KEPT + 6):
        record.add(step, {"loss": float("nan"), "grad_norm": 1.0})
    stored = json.loads((tmp_path / FILE).read_text())["steps"]
    assert [one["step"] for one in stored] == list(range(6, KEPT + 6))
    assert stored[0]["metrics"] == {"loss": "nan"}
    NotFinite(tmp_path, start=50, position=position)
    assert json.loads((tmp_path / FILE).read_text())["steps"][-1]["step"] == 50


@pytest.fixture
def config(tiny_config):
    """Six steps, checkpoints at 3 and 6, rows at 1, 2, 4 and 6."""
    tiny_config.train.sample_every = 100
    return tiny_config


def train(setup, folder):
    loop.train(setup, folder, log=lambda line: None)


def restored(setup, folder):
    checkpoints = Checkpoints(folder, read_only=True)
    found = checkpoints.restore(setup.to_stored(setup.state_shapes()))
    checkpoints.close()
    return found.state


def test_stop_writes_down_the_images_of_the_step_and_skip_goes_on_from_there(config, tmp_path):
    setup = Line(config, poison=[5])
    with pytest.raises(UserError, match=r"step 5: loss = nan: .*step 3 is kept, and .*not_finite"):
        train(setup, tmp_path)
    (one,) = json.loads((tmp_path / FILE).read_text())["steps"]
    batches = setup.batches()
    fifth = [next(batches)["image"] for _ in range(5)][-1]
    assert one["step"] == 5 and one["metrics"] == {"loss": "nan"}
    np.testing.assert_array_equal(setup.source.images[one["examples"]], fifth)

    config.train.on_not_finite = "skip"
    train(setup, tmp_path)  # in the same workdir
    assert json.loads((tmp_path / FILE).read_text())["steps"] == [one]
    state = restored(setup, tmp_path)
    assert state.step == 6 and np.isfinite(state.params).all()
    assert state.opt_state[0].count == 5  # the optimiser has seen one step fewer
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "grad_norm" in row]
    assert [(row["step"], row.get("skipped")) for row in rows][-2:] == [(4, 0), (6, 1)]
    assert all(np.isfinite(list(row.values())).all() for row in rows)


def test_a_row_of_nothing_but_skipped_steps_has_no_loss(config, tmp_path):
    config.train.on_not_finite = "skip"
    train(Line(config, poison=[3, 4]), tmp_path)
    rows = {row["step"]: row for row in read_rows(tmp_path / "metrics.jsonl") if "skipped" in row}
    assert rows[3]["skipped"] == rows[4]["skipped"] == 1 and "loss" not in rows[4]
    assert rows[6]["skipped"] == 0 and np.isfinite(rows[6]["loss"])


def test_too_many_in_a_row_end_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MOST_IN_A_ROW", 2)
    config.train.on_not_finite = "skip"
    # 2 alone does not count with 5.
    with pytest.raises(UserError, match=r"step 6: loss = nan, and 2 updates in a row .* step 3 is"):
        train(Line(config, poison=[2, 5, 6]), tmp_path)


def test_what_to_do_must_be_known(config):
    config.train.on_not_finite = "ignore"
    with pytest.raises(UserError, match="on_not_finite = 'ignore': expected 'stop' or 'skip'"):
        check(config)


def test_steps_go_on_while_a_checkpoint_is_written_and_a_full_disk_is_told(
    config, tmp_path, monkeypatch, caplog
):
    """The save of step 3 ends, and fails, only when the row of step 4 has been written."""
    seen, real_save, real_write = (
        threading.Event(), ocp.CheckpointManager.save, loop.MetricsLog.write,
    )  # fmt: skip

    def save(self, step, *args, **kwargs):
        if step == 3:
            assert seen.wait(120), "step 4 waited for the disk"
            raise OSError(28, "No space left on device")
        return real_save(self, step, *args, **kwargs)

    def write(self, row):
        real_write(self, row)
        if row["step"] == 4:
            seen.set()

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    monkeypatch.setattr(loop.MetricsLog, "write", write)
    train(Line(config), tmp_path)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "can't write a checkpoint of step 3" in line and "No space left on device" in line
    checkpoints = Checkpoints(tmp_path, read_only=True)
    assert checkpoints.steps() == [6]
    checkpoints.close()


def test_a_damaged_checkpoint_costs_its_steps_alone(config, tmp_path, caplog):
    """Going on from the one before gives the bits, rows and snapshots of the run without damage."""
    setup = Line(config)
    train(setup, tmp_path)
    state = restored(setup, tmp_path)
    names = sorted(file.name for file in (tmp_path / "ema").iterdir())
    whole = {f.name: (tmp_path / "ema" / f.name).read_bytes() for f in (tmp_path / "ema").iterdir()}
    losses = {r["step"]: r["eval_loss"] for r in _evaluated(tmp_path)}
    folder = tmp_path / "checkpoints" / "6"
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    train(setup, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, restored(setup, tmp_path), state)
    assert any("checkpoint 6 is damaged" in r.getMessage() for r in caplog.records)
    assert sorted(f.name for f in (tmp_path / "ema").iterdir()) == names
    assert {name: (tmp_path / "ema" / name).read_bytes() for name in names} == whole
    assert {r["step"]: r["eval_loss"] for r in _evaluated(tmp_path)} == losses
    assert (folder.with_name("6.damaged")).is_dir() and folder.is_dir()


def _evaluated(folder):
    return [row for row in read_rows(folder / "metrics.jsonl") if "eval_loss" in row]


def test_an_image_that_breaks_while_it_trains_is_named(tmp_path):
    """Streamed: the headers are in order, so that it shows when its turn comes, in a thread."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    broken = tmp_path / "4.png"
    broken.write_bytes(broken.read_bytes()[:200])
    source = data.load(f"folder:{tmp_path}", memory_limit_mb=0)
    prefetcher = Prefetcher(data.batches(source, batch_size=2, seed=0), lambda batch: batch)
    try:
        with pytest.raises(UserError, match=r"cannot read .*4\.png: .*; replace or remove it") as e:
            for _ in range(3):
                next(prefetcher)
    finally:
        prefetcher.close()
    assert "\n" not in str(e.value)


HOLDER = """
import signal, sys
from pathlib import Path
from diffjax.checkpoints.lock import lock

with lock(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def test_a_killed_process_leaves_no_lock(tmp_path):
    # A process of its own, not a fork: this one has JAX's threads.
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another training"), lock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with lock(tmp_path):
        assert (tmp_path / ".lock").exists()
