"""Part "training": the default Fashion-MNIST model in minutes, then emoji and CIFAR-10.

The number of steps is what the time allows at the measured speed, so that the learning rate reaches
its end. A run that is late is stopped as Ctrl-C stops it, and evaluated as it is.
"""

import contextlib
import json
import os
import shutil
import signal
import statistics
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import cases
from benchmarks.gpu import results
from benchmarks.gpu.part import Part
from diffjax import main

SHARE = 0.8  # of the time of a run that steps are planned for; the rest starts and ends it
EVALUATION = 45.0  # seconds kept for distances and pictures
CALIBRATION = 120  # steps
LEAST = 60.0  # seconds that another run needs


class Run(NamedTuple):
    """A config and the flags that it needs here.

    Attributes:
      name: for the rows and the folder.
      config: path and variant.
      flags: of all its commands.
    """

    name: str
    config: str
    flags: Sequence[str]

    def command(self, folder: Path, *flags: str) -> list[str]:
        """The command line."""
        path = f"--config={cases.ROOT / self.config}"
        return [path, f"--workdir={folder}", *self.flags, *flags]


def run(part: Part) -> None:
    """Fashion-MNIST; then the emoji and CIFAR-10, where the bundle has them and time is left."""
    if part.dry:
        digits = Run("digits", "experiments/digits.py", ["--config.model.channels=16"])
        with part.attempt(digits.name):
            _learn(part, digits, seconds=part.left() / 2, calibration=8, most=10)
            _evaluate(part, digits, "--config.evaluate.num_samples=64")
        return
    fashion = Run(
        "fashion_mnist", "experiments/fashion_mnist.py",
        [f"--config.data.dir={part.work / 'fashion_mnist_idx'}"],
    )  # fmt: skip
    with part.attempt(fashion.name):
        _unpack(part.bundle / "fashion_mnist.tar.xz", part.work / "fashion_mnist_idx")
        rate = _measured(part, "fashion, diffjax-xla-bfloat16")
        _learn(part, fashion, seconds=min(240.0, part.left() - EVALUATION), rate=rate)
        _evaluate(part, fashion)
    for more in (_emoji, _cifar10):
        if part.left() > LEAST:
            with part.attempt(more.__name__.strip("_")):
                more(part)


def _emoji(part: Part) -> None:
    """The emoji's two stages, with a text network that is trained along."""
    archive = part.bundle / "emoji.tar.xz"
    if not archive.exists():
        part.record("emoji", failed=f"{archive} is missing: make gpu-bundle")
        return
    _unpack(archive, part.work / "emoji")
    data = f"--config.data.name=emoji_set:pictures(dir='{part.work / 'emoji'}')"
    first = Run(
        "emoji_autoencoder", "examples/emoji/autoencoder.py:tiny",
        [data, "--config.loss.perceptual=none"],
    )  # fmt: skip
    _learn(part, first, seconds=part.left() / 3, calibration=100)
    second = Run(
        "emoji_text_to_image", "examples/emoji/text_to_image.py:tiny",
        [data, f"--config.first_stage.workdir={part.work / first.name}",
         "--config.condition.text=transformer(length=24)"],
    )  # fmt: skip
    _learn(part, second, seconds=part.left() - EVALUATION / 3, calibration=100)
    _show(part, second)


def _cifar10(part: Part) -> None:
    archive = part.bundle / "cifar10_jpeg.tar.xz"
    if not archive.exists():
        part.record("cifar10", failed=f"{archive} is missing")
        return
    folder = part.work / "cifar10_jpeg"
    _unpack(archive, folder)
    cifar10 = Run(
        "cifar10", "experiments/cifar10.py",
        [f"--config.data.name=folder:{folder}", "--config.train.warmup_steps=200"],
    )  # fmt: skip
    rate = _measured(part, "cifar10-512, diffjax-xla-bfloat16")
    _learn(part, cifar10, seconds=part.left() - EVALUATION / 3, rate=rate)
    _show(part, cifar10)


def _measured(part: Part, what: str) -> float | None:
    """Images a second that the part "steps" has found, if it did."""
    rates = [
        row["images_per_second"] for row in results.read(part.out)
        if row["part"] == "steps" and row["what"] == what and "images_per_second" in row
    ]  # fmt: skip
    return float(rates[-1]) if rates else None


def _learn(
    part: Part, run: Run, *, seconds: float, rate: float | None = None,
    calibration: int = CALIBRATION, most: int | None = None,
) -> None:  # fmt: skip
    """Trains for about `seconds`, and for `most` steps where these are fewer.

    `rate` is in images a second; where it is None, a few steps of a run of its own measure it.
    """
    started = time.monotonic()
    if rate is None:
        rate = _calibrate(part, run, calibration)
    left = seconds - (time.monotonic() - started)
    steps = max(int(SHARE * left * rate / _batch_size(run)), calibration)
    steps = min(steps, most or steps)
    flags = [
        f"--config.train.steps={steps}", f"--config.train.eval_every={max(steps // 4, 1)}",
        f"--config.train.checkpoint_every={max(steps // 2, 1)}",
        f"--config.train.sample_every={steps}",
    ]  # fmt: skip
    began = time.monotonic()
    with stopped_after(left):
        code = main.main(run.command(part.work / run.name, *flags))
    rows = _rows(part.work / run.name)
    if not rows:
        raise RuntimeError(f"{run.name} ended with code {code} before its first step")
    part.record(
        f"{run.name}: training", steps=rows[-1]["step"], planned_steps=steps, exit_code=code,
        seconds=time.monotonic() - began, images_per_second=_rate(rows), loss=rows[-1].get("loss"),
    )  # fmt: skip


def _calibrate(part: Part, run: Run, steps: int) -> float:
    folder = part.work / f"{run.name}-calibration"
    once = 10 * steps  # an evaluation, a checkpoint and pictures come with the last step only
    code = main.main(
        run.command(
            folder, f"--config.train.steps={steps}", f"--config.train.log_every={steps // 4}",
            f"--config.train.eval_every={once}", f"--config.train.checkpoint_every={once}",
            f"--config.train.sample_every={once}", "--config.sample.count=1",
        )
    )  # fmt: skip
    if code:
        raise RuntimeError(f"{run.name}: {steps} steps ended with code {code}")
    return _rate(_rows(folder))


def _rate(rows: Sequence[dict[str, Any]]) -> float:
    """Images a second, without the row that compiles."""
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return float(statistics.median(rates[1:] or rates))


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if "loss" in row]


def _batch_size(run: Run) -> int:
    from diffjax import flags

    return int(flags.parse(run.command(Path("unused"))).config.train.batch_size)


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Sends this process SIGTERM when the time is over; a run then saves and ends.

    Before its first step and after its last, it ends as by Ctrl-C.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    timer = threading.Timer(max(seconds, 1.0), os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def _evaluate(part: Part, run: Run, *flags: str) -> None:
    folder = part.work / run.name
    start = time.monotonic()
    steps = f"--config.train.steps={_rows(folder)[-1]['step']}"
    code = main.main(run.command(folder, steps, "--mode=evaluate", *flags))
    report = json.loads((folder / "evaluation.json").read_text()) if code == 0 else {}
    part.record(
        f"{run.name}: Fréchet distance in the classifier's features", exit_code=code,
        distance=report.get("classifier_frechet_distance"),
        floor=report.get("floor_equal_count"), samples=report.get("num_samples"),
        seconds=time.monotonic() - start,
    )  # fmt: skip
    _show(part, run)


def _show(part: Part, run: Run) -> None:
    """Samples of the last checkpoint, in the folder of results."""
    folder = part.work / run.name
    steps = f"--config.train.steps={_rows(folder)[-1]['step']}"
    code = main.main(run.command(folder, steps, "--mode=sample"))
    (picture,) = sorted((folder / "generated").glob("*.png"))
    shutil.copyfile(picture, part.out / f"{run.name}.png")
    part.record(f"{run.name}: samples", exit_code=code, picture=f"{run.name}.png")


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
