"""Part "smoke": the machine, every mode on digits, a run that a CPU began, the tests for a GPU."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import cases
from benchmarks.gpu.part import Part
from diffjax import main

HALF, WHOLE = 5, 10  # steps of the run that a CPU begins
# Of 255. Sums in another order may round a level up or down, and the network's own steps add up.
MOST_LEVELS = 2
MOST_LOSS = 1e-3  # relative


def run(part: Part) -> None:
    """Every mode by its command line, then the run of a CPU, then the tests."""
    devices = jax.devices()
    part.record(
        "devices", seen=", ".join(sorted({device.device_kind for device in devices})),
        count=len(devices), platform=devices[0].platform, jax=jax.__version__,
    )  # fmt: skip
    by_cpu = _begin_on_cpu(part.work)
    try:
        _modes(part)
        with part.attempt("a run that a CPU began"):
            _go_on(part, by_cpu)
    finally:
        by_cpu.kill()
    with part.attempt("tests -m gpu"):
        _tests(part)


def _digits(folder: Path, *flags: str) -> list[str]:
    return [
        f"--config={cases.ROOT / 'experiments/digits.py'}", f"--workdir={folder}",
        "--config.model.channels=8", "--config.model.head_channels=8",
        "--config.train.schedule=constant",
        "--config.train.warmup_steps=2", "--config.train.log_every=1",
        f"--config.train.eval_every={HALF}", f"--config.train.checkpoint_every={HALF}",
        "--config.train.ema_snapshots=(0.1,)", "--config.sample.count=16",
        "--config.sample.batch_size=16", "--config.sample.steps=5",
        "--config.evaluate.num_samples=64", *flags,
    ]  # fmt: skip


def _modes(part: Part) -> None:
    picture = part.work / "digit.png"
    Image.fromarray(np.tile(32 * np.arange(8, dtype=np.uint8), (8, 1))).save(picture)
    train = f"--config.train.steps={HALF}"
    for strategy in ("pmap", "fsdp"):
        folder = part.work / strategy
        common = _digits(folder, train, f"--config.parallel.strategy={strategy}")
        commands: dict[str, list[str]] = {"train": [], "sample": ["--mode=sample"]}
        if strategy == "pmap":
            commands |= {
                "evaluate": ["--mode=evaluate"],
                "likelihood": [
                    "--mode=evaluate", "--config.evaluate.likelihood=vlb",
                    "--config.evaluate.images=4",
                ],
                "edit": ["--mode=edit", f"--config.edit.images={picture}"],
                "ema": ["--mode=ema"],
                "export": ["--mode=export", f"--out={part.work / 'exported'}"],
                "plan": ["--mode=plan", "--config.parallel.compile=False"],
            }  # fmt: skip
        for name, flags in commands.items():
            with part.attempt(f"{name}, {strategy}"):
                start = time.monotonic()
                code = main.main([*common, *flags])
                part.record(
                    f"{name}, {strategy}", passed=code == 0, seconds=time.monotonic() - start
                )


def _begin_on_cpu(work: Path) -> "subprocess.Popen[bytes]":
    """Starts a run of WHOLE steps in work/cpu, with a copy of its first half in work/gpu."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu.smoke", str(work)]
    with open(work / "cpu.log", "w") as log:
        return subprocess.Popen(
            command, env=environment, cwd=cases.ROOT, stdout=log, stderr=subprocess.STDOUT
        )


def _on_cpu(work: Path) -> int:
    """What the process of `_begin_on_cpu` does."""
    code = main.main(_digits(work / "cpu", f"--config.train.steps={HALF}"))
    code |= main.main(_digits(work / "cpu", f"--config.train.steps={HALF}", "--mode=sample"))
    shutil.copytree(work / "cpu", work / "gpu")
    return code | main.main(_digits(work / "cpu", f"--config.train.steps={WHOLE}"))


def _go_on(part: Part, by_cpu: "subprocess.Popen[bytes]") -> None:
    """The same samples from the CPU's checkpoint, and the same losses after it."""
    if code := by_cpu.wait():
        raise RuntimeError(f"the CPU's run ended with code {code}: see work/smoke/cpu.log")
    here, there = part.work / "gpu", part.work / "cpu"
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            code = main.main(_digits(here, f"--config.train.steps={HALF}", "--mode=sample"))
            ours, theirs = _samples(here), _samples(there)
            apart = np.abs(ours.astype(int) - theirs.astype(int))
            part.record(
                f"samples of the CPU's checkpoint, {precision} precision",
                passed=code == 0 and (precision != "highest" or int(apart.max()) <= MOST_LEVELS),
                most_levels_apart=int(apart.max()), mean_levels_apart=float(apart.mean()),
            )  # fmt: skip
    with jax.default_matmul_precision("highest"):
        code = main.main(_digits(here, f"--config.train.steps={WHOLE}"))
    ours, theirs = (np.array(list(_losses(folder))) for folder in (here, there))
    apart = np.abs(ours / theirs - 1).max()
    part.record(
        f"losses of steps {HALF + 1} to {WHOLE} after the CPU's checkpoint",
        passed=code == 0 and len(ours) == WHOLE - HALF and bool(apart <= MOST_LOSS),
        most_apart=float(apart),
    )


def _samples(folder: Path) -> np.ndarray:
    (path,) = sorted((folder / "generated").glob("*.npz"))
    with np.load(path) as stored:
        return np.asarray(stored["images"])


def _losses(folder: Path) -> Iterator[Any]:
    """Of the second half; its last rows, as a resumed run appends."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "loss" in row and row["step"] > HALF:
            yield row["loss"]


def _tests(part: Part) -> None:
    command = [
        sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", "-p", "no:cacheprovider",
        f"--basetemp={part.work / 'tests'}", f"--numprocesses={2 if part.dry else 6}",
        "--dist=loadfile",
        *(["tests/test_process.py"] if part.dry else []),
    ]  # fmt: skip
    environment = dict(os.environ)
    if not part.dry:
        environment |= {"TEST_DEVICE": "gpu", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with open(part.out / "tests.log", "w") as log:
        done = subprocess.run(
            command, env=environment, cwd=cases.ROOT, stdout=log, stderr=subprocess.STDOUT,
            timeout=max(part.left() - 2, 1),
        )  # fmt: skip
    last = (part.out / "tests.log").read_text().strip().splitlines()[-1]
    part.record("tests -m gpu", passed=done.returncode == 0, outcome=last.strip("= "))


if __name__ == "__main__":
    sys.exit(_on_cpu(Path(sys.argv[1])))
