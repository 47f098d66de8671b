"""What a run tells of its cost, and what it may not do in a step."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.distributed.strategy import DataParallel
from diffjax.experiment import diffusion as experiment
from diffjax.training import loop, telemetry
from diffjax.training.telemetry import IN_FLIGHT, StepTimer
from tests.conftest import ROOT


@pytest.fixture
def clock(monkeypatch):
    """The timer's clock in seconds, which stands still unless a test moves it."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_times_between_steps_and_waits_for_data(clock):
    timer = StepTimer()
    for _ in range(6):
        with timer.waiting():
            clock.seconds += 0.01
        clock.seconds += 0.02
        timer.step(jnp.zeros(()))
    row = timer.row()
    assert row["data_wait_ms"] == pytest.approx(10)
    # The host runs IN_FLIGHT steps ahead; the last ones are found done together.
    assert row["step_ms_p50"] == pytest.approx(30) and row["step_ms_p95"] == pytest.approx(30)
    again = timer.row()  # nothing since
    assert "step_ms_p50" not in again and "data_wait_ms" not in again


def test_time_between_steps_spent_on_something_else_is_not_counted(clock):
    timer = StepTimer()
    for pause in (0.0, 1000.0):
        timer.resume()
        clock.seconds += pause
        for _ in range(IN_FLIGHT + 3):
            clock.seconds += 0.02
            timer.step(jnp.zeros(()))
    assert timer.row()["step_ms_p95"] == pytest.approx(20)


def test_compilations_are_counted():
    timer = StepTimer()
    x = jnp.arange(3.0)
    before = timer.row()["compilations"]
    program = jax.jit(lambda x: jnp.sin(x) * 3.5 + 0.25)
    program(x)
    after = timer.row()["compilations"]
    assert after == before + 1
    program(x)
    assert timer.row()["compilations"] == after
    assert timer.row()["host_memory_mb"] > 50


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_memory_and_open_files_are_those_of_now(tmp_path):
    timer = StepTimer()
    before = timer.row()
    size = 64 * 2**20
    held = np.ones(size, np.uint8)
    files = [(tmp_path / str(number)).open("w") for number in range(5)]
    during = timer.row()
    del held
    for file in files:
        file.close()
    after = timer.row()
    for name in ("host_memory_mb", "host_memory_anonymous_mb"):
        assert during[name] - before[name] == pytest.approx(64, abs=8)
        assert during[name] - after[name] == pytest.approx(64, abs=8)
        assert after["host_memory_peak_mb"] > during[name] - 8
    assert during["open_files"] - before["open_files"] == 5
    assert after["open_files"] == before["open_files"]
    assert before["host_memory_anonymous_mb"] < before["host_memory_mb"]


@pytest.fixture
def small(tiny_config):
    tiny_config.model.update(multipliers=(1,), blocks=1, attention_resolutions=())
    tiny_config.train.update(
        steps=14, log_every=2, eval_every=100, checkpoint_every=100, sample_every=100
    )
    return tiny_config


@pytest.mark.slow
def test_a_run_logs_its_cost_compiles_once_and_traces_when_asked(small, tmp_path, monkeypatch):
    setup = experiment.resolve(small)
    monkeypatch.setattr(experiment.pictures, "final", lambda *args, **more: None)
    loop.train(setup, tmp_path, profile=True, log=lambda line: None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert {row["step"] for row in rows} == {1, 2, 4, 6, 8, 10, 12, 14}
    for row in rows[2:]:
        assert row["step_ms_p95"] >= row["step_ms_p50"] > 0
        assert row["data_wait_ms"] >= 0 and row["host_memory_mb"] > 50
    # The train step, and by the second row the learning rate: nothing after.
    assert len({row["compilations"] for row in rows[2:]}) == 1
    assert any(path.is_file() for path in (tmp_path / "profile").rglob("*"))


LONG = """
import sys
from pathlib import Path

import numpy as np
from tests.conftest import _tiny
from tests.training.test_faults import Line

from diffjax.training import loop, telemetry


class Drawing(Line):
    def write_samples(self, averaged, path):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(np.asarray(averaged))
        return np.zeros((4, 4, 3), np.uint8)


save = loop.Checkpoints.save


def then_wait(self, *args, **more):  # while the thread writes it has files of its own
    save(self, *args, **more)
    self.wait()


loop.Checkpoints.save = then_wait
config = _tiny()
config.train.update(steps=300, log_every=10, eval_every=50, checkpoint_every=50, sample_every=50)
loop.train(Drawing(config), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_handles_and_programs_stay_the_same_once_each_part_had_its_turn(tmp_path):
    # A process of its own: in this one earlier tests' files are closed when the collector comes.
    subprocess.run([sys.executable, "-c", LONG, str(tmp_path)], check=True, cwd=ROOT)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    later = [row for row in rows if "loss" in row and row["step"] > 50]
    assert len(later) == 25 and len(list((tmp_path / "samples").iterdir())) == 5
    assert len({row["compilations"] for row in later}) == 1
    if "open_files" in later[0]:  # nowhere but where the system lists them
        assert len({row["open_files"] for row in later}) == 1


@pytest.mark.slow
def test_a_step_that_needs_the_host_is_refused(small, tmp_path, monkeypatch):
    setup = experiment.resolve(small)
    put = DataParallel.shard_batch

    def forgetful(self, batch):
        return {name: np.asarray(x) for name, x in put(self, batch).items()}

    monkeypatch.setattr(DataParallel, "shard_batch", forgetful)
    with pytest.raises(Exception, match=r"(?i)disallowed"):
        loop.train(setup, tmp_path, log=lambda line: None)
