"""U-Net, transformers and EDM2's U-Net on Fashion-MNIST, each trained for the same minutes.

    python -m benchmarks.backbones --workdir=runs/backbones --minutes=10 --out=docs

Each is a config of `BACKBONES`. Its rate is measured in a short training, which sets the number of
steps that fit into the minutes, and so the length of its learning-rate schedule. Then it is
trained, and draws samples by one sampler in 10 and in 25 steps, with its own guidance. Written are
backbones.md and backbones.png. What is finished is read from the workdir: the same command goes on
where it was stopped. Nothing else should run on the machine, since minutes are what is compared.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import diffjax
from benchmarks import machine
from benchmarks.comparison.runs import train
from benchmarks.few_step import measured
from benchmarks.program import exit_code
from benchmarks.super_resolution import Distance, distance_to
from diffjax.experiment.dataset import load_held_out, load_train
from diffjax.experiment.run import read_config
from diffjax.figures import image_grid, save_png
from diffjax.files import atomic_write, expanded

# EfficientNet-Lite0's maps at 1/16 of 112x112 are 7x7, as the transformer's tokens are.
ALIGNED = "aligned(features='efficientnet_lite0', side=112, layer=3, block='block_3')"
BACKBONES: Mapping[str, tuple[str, ...]] = {
    "U-Net": ("--config=experiments/fashion_mnist_conditional.py:quick",),
    "DiT": ("--config=experiments/fashion_mnist_dit.py:quick",),
    "DiT with REPA": (
        "--config=experiments/fashion_mnist_dit.py:quick", f"--config.diffusion.objective={ALIGNED}"
    ),
    "JiT": ("--config=experiments/fashion_mnist_dit.py:jit-quick",),
    "EDM2": ("--config=experiments/fashion_mnist_edm2.py:quick",),
}  # fmt: skip
STEPS = (10, 25)
ROW = 10  # samples in the picture, one a class
COLUMNS = ("CFD, 10 steps", "CFD, 25 steps", "training", "images seen", "sampling, 25 steps",
           "parameters", "memory")  # fmt: skip


def rates(workdir: Path) -> list[float]:
    """Images per second of the logged parts of a training; the first one compiles."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["images_per_second"] for row in rows if "images_per_second" in row][1:]


def steps_for(minutes: float, rate: float, batch_size: int) -> int:
    """Steps that fit into the minutes.

    >>> steps_for(10, 320.0, 32)
    6000
    """
    return max(1, round(60 * minutes * rate / batch_size))


def trained(
    arguments: Sequence[str], folder: Path, *, minutes: float, trial: int, more: Sequence[str]
) -> Path:
    """The workdir of a training of so many minutes.

    Args:
      arguments: --config and further flags.
      folder: of the workdirs.
      minutes: of its steps, without compilation and pictures.
      trial: steps of the training that measures the rate.
      more: flags of every training.
    """
    plan = folder / "plan.json"
    if not plan.exists():
        short = folder / "trial"
        length = [f"--config.train.{key}={trial}" for key in ("steps", "eval_every")]
        logs = f"--config.train.log_every={max(1, trial // 10)}"
        train([*arguments, f"--workdir={short}", *more, *length, logs])
        config = read_config(short)
        rate = statistics.median(rates(short))
        steps = steps_for(minutes, rate, config.train.batch_size)
        text = json.dumps({"minutes": minutes, "rate": rate, "steps": steps})
        atomic_write(plan, lambda file: file.write(text.encode()))
    steps = json.loads(plan.read_text())["steps"]
    ends = [f"--config.train.{key}={steps}" for key in ("steps", "eval_every", "sample_every")]
    workdir = folder / "run"
    train([*arguments, f"--workdir={workdir}", *more, *ends])
    return workdir


def measure(workdir: Path, distance: Distance, *, samples: int, batch: int) -> dict[str, Any]:
    """What a row of the table shows, and images."""
    model = diffjax.load(str(workdir))
    config = read_config(workdir)
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    peaks = [json.loads(row).get("host_memory_peak_mb", 0) for row in rows]
    rate = statistics.median(rates(workdir))
    cells = {}
    for steps in STEPS:
        settings = {"sampler": "dpm_solver_pp_2m", "steps": steps}
        cells[steps] = measured(model, settings, samples=samples, batch=batch, distance=distance)
    return {
        "distance": [cells[steps].distance for steps in STEPS],
        "milliseconds": cells[STEPS[-1]].milliseconds,
        "rate": rate,
        "images": config.train.steps * config.train.batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "memory": max(peaks),
        "samples": cells[STEPS[-1]].images[:ROW],
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table with a row for each network."""
    lines = [f"| | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
    for name, row in rows.items():
        cells = [
            *(f"{distance:.3f}" for distance in row["distance"]),
            f"{row['rate']:.0f} images/s", f"{row['images']:,}",
            f"{row['milliseconds']:.1f} ms an image", f"{row['parameters'] / 1e6:.2f} M",
            f"{row['memory'] / 1024:.1f} GiB",
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures, prints and writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.backbones", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--workdir", required=True, help="of the trainings")
    parser.add_argument("--out", help="folder of the page; by default the workdir")
    parser.add_argument("--minutes", type=float, default=10, help="of each training")
    parser.add_argument("--only", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--trial", type=int, default=200, help="steps that measure the rate")
    parser.add_argument("--flag", action="append", default=[], help="a further flag of trainings")
    given = parser.parse_args(arguments)
    workdir = expanded(given.workdir)
    out = expanded(given.out) if given.out else workdir
    rows: dict[str, dict[str, Any]] = {}
    distance = None
    for name in given.only:
        folder = workdir / name.lower().replace(" ", "_").replace("-", "")
        path = folder / "measured.npz"
        if not path.exists():
            run = trained(
                BACKBONES[name], folder, minutes=given.minutes, trial=given.trial, more=given.flag
            )
            if distance is None:
                config = read_config(run)
                train_set = load_train(config)
                distance = distance_to(train_set, load_held_out(config, train_set))
            found = measure(run, distance, samples=given.samples, batch=given.batch)
            atomic_write(path, partial(np.savez_compressed, **found))
        with np.load(path) as stored:
            rows[name] = dict(stored)
        print(table(rows), flush=True)
    about = (
        f"{given.samples:,} samples by DPM-Solver++ 2M with each config's guidance, after "
        f"{given.minutes:g} minutes of training each; {machine.describe('cpu')}"
    )
    text = f"{about}\n\n{table(rows)}\n"
    atomic_write(out / "backbones.md", lambda file: file.write(text.encode()))
    pictures = np.concatenate([row["samples"] for row in rows.values()])
    save_png(
        out / "backbones.png", image_grid(pictures, columns=ROW, scale=2, row_labels=list(rows))
    )
    print(f"wrote backbones.md and backbones.png in {out}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
