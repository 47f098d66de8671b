"""A checkpoint that is not what was written is never taken for it."""

import json
import logging
import shutil
import threading

import numpy as np
import orbax.checkpoint as ocp
import pytest

from diffjax.checkpoints import store as module
from diffjax.checkpoints.store import Checkpoints
from diffjax.errors import UserError


def state(step):
    # Noise does not compress, so a flipped bit lies in a number and not in a compressor's table.
    noise = np.random.default_rng(step).normal(size=4000).astype(np.float32)
    return {"noise": noise, "step": np.int32(step)}


LIKE = state(0)


def assert_is(found, step):
    assert found.step == step and found.data == {"position": step}
    for name, array in state(step).items():
        np.testing.assert_array_equal(found.state[name], array)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    checkpoints = Checkpoints(folder)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"position": step}, loss=float(step))
    checkpoints.close()
    return folder


@pytest.fixture
def copy(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def files_of(folder, step=3):
    return sorted(f for f in (folder / "checkpoints" / str(step)).rglob("*") if f.is_file())


def largest(folder, step=3):
    return max(files_of(folder, step), key=lambda f: f.stat().st_size)


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file, place=0.5):
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 8
    file.write_bytes(content)


def told(caplog):
    """Our own lines; orbax has some for whoever only reads."""
    return [record.getMessage() for record in caplog.records if record.name == "diffjax"]


def read(folder, step=None):
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        return checkpoints.restore(LIKE, step=step)
    finally:
        checkpoints.close()


@pytest.mark.parametrize("damage", [halve, flip, lambda file: file.unlink()])
def test_whatever_file_is_damaged_what_is_read_is_what_was_written(copy, damage):
    """Some files hold nothing that is needed; the others' damage leads to the checkpoint before."""
    found_damaged = set()
    for file in files_of(copy):
        content = file.read_bytes()
        damage(file)
        found = read(copy)
        assert_is(found, found.step)
        if found.step == 2:
            found_damaged.add(file.relative_to(copy / "checkpoints" / "3").parts[0])
        file.write_bytes(content)
    assert found_damaged >= {"state", "data", "checksums"}
    assert_is(read(copy), 3)


def test_bits_flipped_all_over_the_arrays_are_found(copy, caplog):
    original = largest(copy).read_bytes()
    for place in np.linspace(0.05, 0.95, 12):
        flip(largest(copy), place)
        assert_is(read(copy), 2)
        largest(copy).write_bytes(original)
    # The file system and the library notice nothing of most of these.
    assert sum("the checksum of ['noise'] differs" in line for line in told(caplog)) > 6


def test_training_goes_on_from_the_one_before_and_writes_the_step_anew(copy, caplog):
    flip(largest(copy))
    checkpoints = Checkpoints(copy)
    assert_is(checkpoints.restore(LIKE), 2)
    (line,) = told(caplog)
    aside = copy / "checkpoints" / "3.damaged"
    assert "checkpoint 3 is damaged (the checksum of" in line
    assert line.endswith(f"resuming from 2; it is kept as {aside}") and aside.is_dir()
    checkpoints.save(3, state(3), {"position": 3}, loss=0.5)
    checkpoints.close()
    again = Checkpoints(copy)
    assert again.steps() == [1, 2, 3] and again.best_step() == 3 and aside.is_dir()
    assert_is(again.restore(LIKE), 3)
    again.close()


def test_two_damaged_ones_are_both_named_and_a_reader_moves_neither(copy, caplog):
    flip(largest(copy, 3))
    halve(largest(copy, 2))
    assert_is(read(copy), 1)
    for line, step in zip(told(caplog), (3, 2), strict=True):
        assert line.startswith(f"warning: checkpoint {step} is damaged (")
        assert line.endswith("): resuming from 1") and "\n" not in line
        assert (copy / "checkpoints" / str(step)).is_dir()


def test_a_step_that_was_asked_for_is_that_one_or_an_error(copy):
    flip(largest(copy, 2))
    with pytest.raises(UserError, match=r"checkpoints/2 is damaged \(the checksum of .*'latest'"):
        read(copy, step=2)
    assert_is(read(copy, step=3), 3)


@pytest.mark.parametrize("read_only", [True, False])
def test_none_that_is_whole_is_an_error_every_time(copy, read_only):
    for step in (1, 2, 3):
        halve(largest(copy, step))
    for _ in range(2):
        checkpoints = Checkpoints(copy, read_only=read_only)
        with pytest.raises(UserError, match=r"none of the checkpoints \[1, 2, 3\] .* is intact"):
            checkpoints.restore(LIKE)
        checkpoints.close()


def test_another_structure_is_not_damage(copy, caplog):
    checkpoints = Checkpoints(copy)
    with pytest.raises(UserError, match=r"for this config \(it has \['noise'\], which this"):
        checkpoints.restore({"step": np.int32(0)})
    with pytest.raises(UserError, match=r"\(its \['noise'\] is float32 \(4000,\), .* \(9,\)\)"):
        checkpoints.restore({**LIKE, "noise": np.zeros(9, np.float32)})
    with pytest.raises(UserError, match=r"\(it has no \['more'\]\)"):
        checkpoints.restore({**LIKE, "more": np.zeros(9, np.float32)})
    checkpoints.close()
    assert not told(caplog)


def test_one_of_an_older_version_is_read_and_that_is_told(tmp_path, caplog):
    """As they were written before there were checksums; the losses were in orbax's hands then."""
    older = ocp.CheckpointManager(
        tmp_path / "checkpoints",
        options=ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"]),
        item_names=("state", "data"),
    )
    for step, loss in ((1, 0.5), (2, 0.75)):
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state(step)), data=ocp.args.JsonSave({"position": step})
        )
        older.save(step, args=args, metrics={"loss": loss})
    older.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_step() == 1
    assert_is(checkpoints.restore(LIKE), 2)
    assert "checkpoint 2 has no checksums" in caplog.text
    for step in (3, 4, 5):
        checkpoints.save(step, state(step), {"position": step}, loss=float(step))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3, 4, 5]
    checkpoints.close()


def test_a_flipped_loss_makes_no_other_checkpoint_the_best(copy):
    (file,) = (
        f for f in files_of(copy, 1) if f.parent.name == "checksums" and f.stem == "metadata"
    )
    assert Checkpoints(copy, read_only=True).best_step() == 1
    file.write_text(file.read_text().replace('"loss": 1.0', '"loss": 9.0'))
    assert json.loads(file.read_text())["loss"] == 9.0
    assert Checkpoints(copy, read_only=True).best_step() == 2


@pytest.fixture
def gate(monkeypatch):
    """A disk that takes nothing until the event is set."""
    event, real = threading.Event(), ocp.CheckpointManager.save

    def save(self, *args, **kwargs):
        assert event.wait(30)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    return event


def test_a_slow_disk_stops_nobody_until_the_next_save_which_waits(tmp_path, gate, caplog, request):
    said = []

    class OpensTheGate(logging.Handler):
        """The disk is held back until the second save says that it waits."""

        def emit(self, record):
            said.append(record.getMessage())
            gate.set()

    caplog.set_level(logging.INFO, logger="diffjax")
    handler = OpensTheGate()
    request.addfinalizer(lambda: logging.getLogger("diffjax").removeHandler(handler))
    logging.getLogger("diffjax").addHandler(handler)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1), {"position": 1}, loss=1.0)
    assert not checkpoints.steps() and not said
    checkpoints.save(2, state(2), {"position": 2}, loss=1.0)
    assert said == ["step 2: waiting for the previous checkpoint to be written"]
    assert 1 in checkpoints.steps()
    checkpoints.close()
    assert_is(read(tmp_path, step=1), 1)
    assert_is(read(tmp_path), 2)


@pytest.fixture
def full(monkeypatch):
    """A disk that is full for the steps in the set."""
    steps, real = set(), module.ocp.args.StandardSave

    def save(state):
        if int(state["step"]) in steps:
            raise OSError(28, "No space left on device")
        return real(state)

    monkeypatch.setattr(module.ocp.args, "StandardSave", save)
    return steps


def test_a_disk_that_is_full_for_a_moment_is_a_warning(tmp_path, full, caplog):
    full.add(2)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"position": step}, loss=1.0)
    checkpoints.wait()
    # Where the machine is slow, a save also tells that it waited for the one before.
    (line,) = [line for line in told(caplog) if "can't write" in line]
    assert line.startswith("warning: can't write a checkpoint of step 2") and "No space" in line
    assert checkpoints.steps() == [1, 3]
    checkpoints.close()


def test_a_disk_that_stays_full_is_an_error_and_keeps_the_checkpoints(tmp_path, full):
    full.update((2, 3))
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"position": step}, loss=1.0)
    with pytest.raises(UserError, match=r"can't write a checkpoint of step 3 .*No space left"):
        checkpoints.save(4, state(4), {"position": 4}, loss=1.0)
    with pytest.raises(UserError, match="step 3"):
        checkpoints.close()
    assert_is(read(tmp_path), 1)


def test_the_last_one_that_fails_is_an_error_at_once(tmp_path, full):
    full.add(2)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"position": step}, loss=1.0)
    with pytest.raises(UserError, match="step 2"):
        checkpoints.wait()
    assert_is(read(tmp_path), 1)
