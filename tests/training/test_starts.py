"""The record of each start of training."""

import importlib.metadata
import json
import subprocess
from datetime import datetime

import jax
import pytest

from diffjax.training import starts
from diffjax.training.logs import first_step_seconds


def lines(folder):
    return [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]


def test_each_start_is_a_line(tmp_path):
    for step in (0, 7):
        starts.record(tmp_path, step=step, devices=jax.devices(), parameters=12)
    first, second = lines(tmp_path)
    assert (first["step"], second["step"], second["parameters"]) == (0, 7, 12)
    assert first["devices"] == len(jax.devices())
    assert first["device_kind"] == jax.devices()[0].device_kind
    assert first["versions"]["jax"] == importlib.metadata.version("jax")
    age = datetime.now().astimezone() - datetime.fromisoformat(second["time"])
    assert abs(age.total_seconds()) < 60


def test_the_commit_is_gits(tmp_path):
    assert starts.commit(tmp_path) is None

    def git(*arguments):
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        asked = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "config.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "-am", "a tag", "v1")
    whole = git("rev-parse", "HEAD")
    found = starts.commit(tmp_path)
    assert found is not None and len(found) == 12 and whole.startswith(found)
    (tmp_path / "config.py").write_text("2")
    assert starts.commit(tmp_path) == f"{found}-dirty"


def test_the_commit_is_none_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert starts.commit(tmp_path) is None


def test_the_first_steps_time_is_that_of_the_last_start():
    rows = [
        {"step": 1, "images_per_second": 4.0},
        {"step": 50, "images_per_second": 100.0, "step_ms_p50": 80.0},
        {"step": 50, "eval_loss": 0.1},
        {"step": 51, "images_per_second": 2.0},
    ]
    assert first_step_seconds(rows, batch_size=8) == pytest.approx(4.0)
    assert first_step_seconds(rows[:2], batch_size=8) == pytest.approx(2.0)
    assert first_step_seconds([], batch_size=8) is None
