"""Runs that are killed again and again, and disks that are full: minutes, so not in the suite.

    python -m pytest tests/soak                     # 50 kills
    DIFFJAX_KILLS=5 python -m pytest tests/soak -s  # -s shows each kill

A killed run and an undisturbed one must end with the same bits. DIFFJAX_SOAK_SEED draws other
moments. The full disk is a tmpfs, which needs the right to mount one.
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

KILLS = int(os.environ.get("DIFFJAX_KILLS", "50"))
SEED = int(os.environ.get("DIFFJAX_SOAK_SEED", "0"))
GRACE = 30.0  # seconds that clusters commonly give between SIGTERM and SIGKILL
STEPS = 20  # of a run, for each kill
EVERY = 3  # steps between checkpoints
WITHIN = 1.5  # seconds after a first checkpoint in which a run is killed


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["diffjax.main", "diffjax.training.loop", "diffjax.experiment.pictures"]
)


class Run:
    """A command line in a process of its own, what it prints in a file.

    The processes are forks of one that has imported everything and has not used JAX, which saves
    most of the time that a start takes.
    """

    def __init__(self, flags, workdir):
        descriptor, self.log = tempfile.mkstemp(suffix=".log")
        os.close(descriptor)
        command = [*flags, f"--workdir={workdir}"]
        self.process = FORKS.Process(target=in_the_fork, args=(command, self.log))
        self.process.start()

    def printed(self):
        return Path(self.log).read_text()

    def running(self):
        return self.process.is_alive()

    def end(self, number=None):
        """Sends a signal, waits for the end and returns (the exit code, what was printed)."""
        if number is not None and self.running():
            os.kill(self.process.pid, number)
        self.process.join()
        return self.process.exitcode, self.printed()


def in_the_fork(command, log):
    from diffjax.main import main

    file = os.open(log, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.exit(main(command))


def flags_of(tiny_flags, *, steps, every=EVERY):
    return [
        *tiny_flags, f"--config.train.steps={steps}", f"--config.train.checkpoint_every={every}",
        "--config.train.eval_every=50", "--config.train.sample_every=1000000",
        "--config.train.ema_snapshots=(0.1,)",
    ]  # fmt: skip


def steps_of(workdir):
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def half_written(workdir):
    folder = workdir / "checkpoints"
    return folder.is_dir() and any("tmp" in name for name in os.listdir(folder))


def arrays(workdir):
    """The last checkpoint's, read by orbax itself."""
    last = steps_of(workdir)[-1]
    state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(last) / "state")
    return last, [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def evaluations(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    return {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}


def finish(flags, workdir):
    code, printed = Run(flags, workdir).end()
    assert code == 0, printed
    assert "damaged" not in printed
    return printed


def test_a_run_that_is_killed_at_random_ends_with_the_same_bits(tmp_path, tiny_flags):
    draw = random.Random(SEED)
    flags = flags_of(tiny_flags, steps=STEPS * KILLS)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    kills = within_a_save = lost = before_any_step = 0
    for number in range(KILLS):
        before = steps_of(killed)[-1:]
        run = Run(flags, killed)
        if number % 5 == 4:  # anywhere, reading the checkpoint and compiling included
            time.sleep(draw.uniform(0, 8))
        else:
            while run.running() and steps_of(killed)[-1:] == before:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, WITHIN))
        code, printed = run.end(signal.SIGKILL)
        if code != -signal.SIGKILL:
            assert code == 0, printed
            break  # it was over
        assert "damaged" not in printed, printed
        kills += 1
        within_a_save += half_written(killed)
        found = [int(step) for step in re.findall(r"^step (\d+)/", printed, re.MULTILINE)]
        after = steps_of(killed)[-1:] or [0]
        assert after >= (before or [0])
        before_any_step += not found
        lost = max(lost, max(found, default=0) - after[0])
        print(f"kill {number + 1}: checkpoint {before} -> {after}, at least step {found[-1:]}")
    finish(flags, killed)
    finish(flags, undisturbed)
    step, ours = arrays(killed)
    other_step, theirs = arrays(undisturbed)
    assert step == other_step == STEPS * KILLS
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert evaluations(killed) == evaluations(undisturbed)
    for file in (undisturbed / "ema").iterdir():
        assert file.read_bytes() == (killed / "ema" / file.name).read_bytes()
    print(
        f"{kills} kills, {within_a_save} within a save, {before_any_step} before a first row; at "
        f"most {lost} logged steps to take again; {step} steps, all bits equal"
    )


def test_sigterm_saves_within_its_grace(tmp_path, tiny_flags):
    draw = random.Random(SEED)
    flags = flags_of(tiny_flags, steps=10**6, every=10**6)
    slowest = 0.0
    for _ in range(max(1, KILLS // 10)):
        before = steps_of(tmp_path)[-1:] or [0]
        run = Run(flags, tmp_path)
        while run.running() and not re.search(r"^step \d+/", run.printed(), re.MULTILINE):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, WITHIN))
        began = time.monotonic()
        code, printed = run.end(signal.SIGTERM)
        slowest = max(slowest, time.monotonic() - began)
        assert code == 128 + signal.SIGTERM, printed
        said = re.findall(r"stopped at step (\d+)", printed)
        assert steps_of(tmp_path)[-1:] == [int(said[-1])] and int(said[-1]) > before[0]
    print(f"{max(1, KILLS // 10)} SIGTERMs, the slowest took {slowest:.1f} s to save and end")
    assert slowest < GRACE


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_keeps_the_checkpoints_and_ends_with_an_error(small_disk, tiny_flags):
    workdir = small_disk / "run"
    flags = flags_of(tiny_flags, steps=3)
    finish(flags, workdir)
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(bytes(max(0, free - 40_000)))
    step, kept = arrays(workdir)
    code, printed = Run(flags_of(tiny_flags, steps=100), workdir).end()
    assert code == 2, printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    warnings = [line for line in printed.splitlines() if line.startswith("warning: ")]
    assert len(errors) == 1 and "No space left on device" in errors[0], printed
    assert "Traceback" not in printed
    print("\n".join(warnings + errors))
    again, still = arrays(workdir)
    assert again == step
    for a, b in zip(kept, still, strict=True):
        np.testing.assert_array_equal(a, b)
    ballast.unlink()
    assert f"resuming from step {step} of" in finish(flags_of(tiny_flags, steps=9), workdir)


def test_a_disk_that_is_full_for_a_while_costs_no_row(small_disk, tiny_flags):
    workdir, steps = small_disk / "run", 1200
    flags = [*flags_of(tiny_flags, steps=steps, every=steps), "--config.train.log_every=5"]
    run = Run(flags, workdir)
    while run.running() and "step 50/" not in run.printed():
        time.sleep(0.01)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    while run.running() and "can't write rows of metrics" not in run.printed():
        time.sleep(0.01)
    assert not shutil.disk_usage(small_disk).free
    written = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    while run.running() and f"step {written[-1]['step'] + 100}/" not in run.printed():
        time.sleep(0.01)
    assert (workdir / "metrics.jsonl").read_text().endswith("}\n")
    ballast.unlink()
    code, printed = run.end()
    assert code == 0, printed
    rows = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, *range(5, steps + 1, 5)]
    warnings = [line for line in printed.splitlines() if "warning: " in line]
    assert len([line for line in warnings if "rows of metrics" in line]) == 1, printed
    assert "Traceback" not in printed and "are lost" not in printed
    print("\n".join(warnings))
