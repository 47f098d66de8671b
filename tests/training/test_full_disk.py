"""A run whose metrics and pictures find no room: what it does meanwhile, and how it ends."""

import json
import logging
import resource

import numpy as np
import pytest

from diffjax import main
from diffjax.checkpoints import workdir
from diffjax.errors import UserError
from diffjax.training import loop
from diffjax.training.logs import read_rows
from tests.training.test_faults import Line, restored

FULL = 2**22  # bytes: no other file of these runs grows so large


class FullDisk:
    """No file may pass FULL bytes, and a first row leaves 200 to metrics.jsonl."""

    def __init__(self, folder):
        folder.mkdir(exist_ok=True)
        row = {"step": 0, "padding": ""}
        row["padding"] = "x" * (FULL - 200 - len(json.dumps(row)) - 1)
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, self.before[1]))

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.fixture
def disk(tmp_path):
    disk = FullDisk(tmp_path)
    yield disk
    disk.free()


@pytest.fixture
def config(tiny_config):
    """Six steps, checkpoints at 3 and 6, rows at 1 to 6 and of evaluations at 3 and 6."""
    tiny_config.train.update(log_every=1, sample_every=100)
    return tiny_config


def steps(folder):
    return [row["step"] for row in read_rows(folder / "metrics.jsonl")]


def test_rows_wait_while_the_disk_is_full_and_none_is_lost(
    config, disk, tmp_path, monkeypatch, caplog
):
    write = loop.MetricsLog.write

    def then_free(self, row):
        write(self, row)
        if row["step"] == 4:
            assert steps(tmp_path) == [0]  # they are late indeed
            disk.free()

    monkeypatch.setattr(loop.MetricsLog, "write", then_free)
    loop.train(Line(config), tmp_path, log=lambda line: None)
    assert steps(tmp_path) == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "File too large" in line and str(tmp_path / "metrics.jsonl") in line


def test_rows_without_room_at_the_end_are_an_error_and_the_checkpoint_is_there(
    config, disk, tmp_path, caplog
):
    line = Line(config)
    with pytest.raises(UserError, match=r"metrics of steps 1 to 6 to .*: File too large") as error:
        loop.train(line, tmp_path, log=lambda line: None)
    assert "\n" not in str(error.value)
    assert steps(tmp_path) == [0]
    assert (tmp_path / "metrics.jsonl").read_text().endswith('"}\n')  # no half row
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
    assert restored(line, tmp_path).step == 6
    disk.free()
    loop.train(line, tmp_path, log=lambda line: None)  # nothing is left to do


def test_the_command_ends_with_one_line(config, disk, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("diffjax.experiment.diffusion.resolve", Line)
    asked = main.flags.CommandLine(config, tmp_path, "train")
    monkeypatch.setattr(main.flags, "parse", lambda arguments: asked)
    assert main.main(["--config=mine.py"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len([line for line in told if line.startswith("error: can't write the metrics")]) == 1
    assert not any("Traceback" in line for line in told)


def test_a_picture_that_finds_no_room_is_told_and_ends_nothing(config, tmp_path, capsys):
    config.train.sample_every = 2

    class Drawing(Line):
        identity = workdir.NOTHING

        def write_samples(self, averaged, path):
            if path.name == "step_0000002.png":
                raise OSError(28, "No space left on device", str(path))
            return np.zeros((4, 4, 3), np.uint8)

    loop.train(Drawing(config), tmp_path, log=lambda line: None)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(told) == 1
    assert told[0].startswith("warning: no samples at step 2: ") and "No space left" in told[0]
    assert (tmp_path / "loss.png").exists()  # which is told of by itself
    assert steps(tmp_path)[-1] == 6


def test_loss_png_without_room_ends_nothing(config, tmp_path, capsys, monkeypatch):
    config.train.sample_every = 2

    class Drawing(Line):
        def write_samples(self, averaged, path):
            return np.zeros((4, 4, 3), np.uint8)

    def refuse(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.loss_picture, "write", refuse)
    loop.train(Drawing(config), tmp_path, log=lambda line: None)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert [line.split(":")[1] for line in told] == [
        " no loss.png at step 2", " no loss.png at step 4",
    ]  # fmt: skip
