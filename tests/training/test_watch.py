"""What a run tells of its cost, and what it may not do in a step."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.training import experiment, loop
from diffjax.training.parallel import DataParallel
from diffjax.training.watch import IN_FLIGHT, Watch


def test_times_between_steps_and_waits_for_data():
    watch = Watch()
    ready = jnp.zeros(())
    for _ in range(6):
        with watch.waiting():
            time.sleep(0.01)
        time.sleep(0.02)
        watch.step(ready)
    row = watch.row()
    assert 10 <= row["data_wait_ms"] < 100
    assert row["step_ms_p50"] >= 20 and row["step_ms_p95"] >= row["step_ms_p50"]
    again = watch.row()  # nothing since
    assert "step_ms_p50" not in again and "data_wait_ms" not in again


def test_what_lies_between_steps_is_not_theirs():
    watch = Watch()
    for _ in range(IN_FLIGHT + 2):
        watch.step(jnp.zeros(()))
    watch.resume()
    time.sleep(0.3)
    for _ in range(IN_FLIGHT + 2):
        watch.step(jnp.zeros(()))
    assert watch.row()["step_ms_p95"] < 250


def test_compilations_are_counted():
    watch = Watch()
    x = jnp.arange(3.0)
    before = watch.row()["compilations"]
    program = jax.jit(lambda x: jnp.sin(x) * 3.5 + 0.25)
    program(x)
    after = watch.row()["compilations"]
    assert after == before + 1
    program(x)
    assert watch.row()["compilations"] == after
    assert watch.row()["host_memory_mb"] > 50


@pytest.fixture
def small(tiny_config):
    tiny_config.model.update(multipliers=(1,), blocks=1, attention_resolutions=())
    tiny_config.train.update(
        steps=14, log_every=2, eval_every=100, checkpoint_every=100, sample_every=100
    )
    return tiny_config


def test_a_run_logs_its_cost_compiles_once_and_traces_when_asked(small, tmp_path, monkeypatch):
    setup = experiment.resolve(small)
    monkeypatch.setattr(experiment.pictures, "final", lambda *args, **more: None)
    loop.train(setup, tmp_path, profile=True, say=lambda line: None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert {row["step"] for row in rows} == {1, 2, 4, 6, 8, 10, 12, 14}
    for row in rows[2:]:
        assert row["step_ms_p95"] >= row["step_ms_p50"] > 0
        assert row["data_wait_ms"] >= 0 and row["host_memory_mb"] > 50
    # The train step, and by the second row the learning rate: nothing after.
    assert len({row["compilations"] for row in rows[2:]}) == 1
    assert any(path.is_file() for path in (tmp_path / "profile").rglob("*"))


def test_a_step_that_needs_the_host_is_refused(small, tmp_path, monkeypatch):
    setup = experiment.resolve(small)
    put = DataParallel.shard

    def forgetful(self, batch):
        return {name: np.asarray(x) for name, x in put(self, batch).items()}

    monkeypatch.setattr(DataParallel, "shard", forgetful)
    with pytest.raises(Exception, match=r"(?i)disallowed"):
        loop.train(setup, tmp_path, say=lambda line: None)
