"""Latent against pixel diffusion of one data set: what training and sampling cost, and what for.

    python -m benchmarks.latent_against_pixels \
        --pixels experiments/fashion_mnist_conditional.py:quick \
            runs/fashion_mnist_conditional-quick \
        --latents experiments/fashion_mnist_latent.py:tiny runs/fashion_mnist_latent-tiny \
        --first_stage experiments/fashion_mnist_autoencoder.py:tiny \
            runs/fashion_mnist_autoencoder-tiny

times train steps and samples of all sides in turns, so that the machine's moods meet all alike, and
takes the classifier Fréchet distance of `--samples` samples for each number of steps. The cost of a
training is its steps times the seconds a step; the latent model's is that of both stages.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.program import exit_code
from diffjax import flags
from diffjax.evaluation.report import evaluate
from diffjax.experiment import autoencoder as first_stage
from diffjax.experiment import diffusion as experiment
from diffjax.experiment.restore import restore_params
from diffjax.files import cache_folder

ROUNDS = 5
STEPS_A_ROUND = 20
BATCH = 100


class Side(NamedTuple):
    """A run: its name, resolved config and what it was trained to."""

    name: str
    setup: Any
    params: Any
    step: int


def side(name: str, run: tuple[str, str], resolve: Callable[[Any], Any], *more: str) -> Side:
    """Reads a run, given as its config and workdir."""
    config, workdir = run
    found, folder, *_ = flags.parse([f"--config={config}", f"--workdir={workdir}", *more])
    setup = resolve(found)
    step, params = restore_params(setup, Path(folder))
    return Side(name, setup, params, step)


def train_seconds(sides: list[Side]) -> dict[str, float]:
    """Median seconds of a train step of each side."""
    work: dict[str, Callable[[], None]] = {}
    for one in sides:
        step = jax.jit(one.setup.train_step())
        # Past the step where a discriminator joins.
        state = one.setup.init_state()._replace(step=np.int32(one.step))
        batch = next(one.setup.batches())
        jax.block_until_ready(step(state, batch))
        work[one.name] = partial(_steps, step, state, batch)
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, run in work.items():
            times[name].append(seconds(run) / STEPS_A_ROUND)
    return {name: statistics.median(found) for name, found in times.items()}


def _steps(step: Callable[..., Any], state: Any, batch: Any) -> None:
    for _ in range(STEPS_A_ROUND):
        out = step(state, batch)
    jax.block_until_ready(out)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def with_steps(one: Side, steps: int) -> Side:
    """The side with another number of sampling steps."""
    config = one.setup.config.copy_and_resolve_references()
    with config.unlocked():
        config.sample.steps = steps
    setup = one.setup._replace(config=config)
    return one._replace(setup=setup._replace(generator=setup.make_generator()))


def main(arguments: list[str]) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latent_against_pixels")
    for name in ("pixels", "latents", "first_stage"):
        parser.add_argument(f"--{name}", nargs=2, metavar=("CONFIG", "WORKDIR"), required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=(10, 25, 50))
    parser.add_argument("--sampler", default="ddim(eta=1.0)")
    options = parser.parse_args(arguments)
    sampler = f"--config.sample.sampler={options.sampler}"
    stage = side("first stage", options.first_stage, first_stage.resolve)
    workdir = f"--config.first_stage.workdir={options.first_stage[1]}"
    sides = [
        side("pixels", options.pixels, experiment.resolve, sampler),
        side("latents", options.latents, experiment.resolve, sampler, workdir),
    ]
    cost = train_seconds([stage, *sides])
    for one in (stage, *sides):
        per_step = cost[one.name]
        print(
            f"{one.name}: {1000 * per_step:.1f} ms a step of {one.setup.config.train.batch_size}, "
            f"{one.step} steps: {per_step * one.step / 60:.1f} min",
            flush=True,
        )
    rows = []
    for steps in options.steps:
        pair = [with_steps(one, steps) for one in sides]
        found: dict[str, list[float]] = {one.name: [] for one in pair}
        for one in pair:
            draw(one, 0)  # compiled
        for number in range(ROUNDS):
            for one in pair:
                found[one.name].append(seconds(partial(draw, one, number)) / BATCH)
        rows += [
            (one.name, steps, 1000 * statistics.median(found[one.name]), distance(one, options))
            for one in pair
        ]
        for row in rows[-2:]:
            print(
                f"{row[0]}, {row[1]} steps: {row[2]:.1f} ms an image, CFD {row[3]:.3f}", flush=True
            )


def draw(one: Side, number: int) -> np.ndarray:
    """A batch of samples."""
    return one.setup.generator(one.params, start=number * BATCH, count=BATCH).images


def distance(one: Side, options: Any) -> float:
    """The classifier Fréchet distance of samples."""
    report = evaluate(
        lambda start, count: (
            one.setup.generator(one.params, start=start, count=count, batch_size=BATCH).images
        ),
        train=one.setup.source,
        load_test=one.setup.load_held_out,
        cache_dir=cache_folder() / "evaluation",
        num_samples=options.samples,
        batch_size=BATCH,
        log=lambda line: None,
    )
    return report["classifier_frechet_distance"]


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
