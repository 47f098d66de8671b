"""Few-step models next to the solvers of the diffusion model that they were made of.

    python -m benchmarks.few_step --teacher=runs/fashion_mnist_conditional-quick \
        --student consistency=runs/fashion_mnist_consistency-quick \
        --student mean_flow=runs/fashion_mnist_mean_flow-quick \
        --student progressive=runs/fashion_mnist_progressive-quick@1200:8 \
        --student progressive=runs/fashion_mnist_progressive-quick@2400:4 \
        --student progressive=runs/fashion_mnist_progressive-quick@3600:2 \
        --student progressive=runs/fashion_mnist_progressive-quick@4800:1

Each row is a sampler of the teacher, with its guidance, or a student with the sampler of its
config; each column a number of steps. A guided step of the teacher is two evaluations of the
network. Measured are the Fréchet distance of samples of all classes to the training images, in the
features of the set's classifier, and milliseconds an image at the given batch. Written are
few_step.md, few_step.png (the distance against the steps) and few_step_grid.png (the same noise by
every method and number of steps).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import diffjax
from benchmarks.program import exit_code
from benchmarks.super_resolution import Distance, distance_to
from diffjax.errors import UserError
from diffjax.experiment.dataset import load_held_out, load_train
from diffjax.experiment.init_from import split
from diffjax.experiment.run import read_config
from diffjax.figures import image_grid, save_png
from diffjax.files import atomic_write, expanded

SOLVERS = ("ddim", "ipndm", "dpm_solver_pp_2m", "unipc(order=3)")
STEPS = (1, 2, 4, 8, 25, 50)
PICTURES = 10


class Student(NamedTuple):
    """A model with the numbers of steps that it is measured at; () for all."""

    name: str
    run: str
    steps: tuple[int, ...]


class Cell(NamedTuple):
    """What was measured of a method at a number of steps."""

    distance: float
    milliseconds: float
    images: np.ndarray


def student(text: str) -> Student:
    """NAME=WORKDIR[@CHECKPOINT][:STEPS,...].

    >>> student("progressive=runs/p@4800:4,2")
    Student(name='progressive', run='runs/p@4800', steps=(4, 2))
    """
    name, equals, run = text.partition("=")
    run, _, steps = run.partition(":")
    try:
        counts = tuple(int(n) for n in steps.split(",")) if steps else ()
    except ValueError:
        counts = (0,)
    if not (name and equals and run) or min(counts, default=1) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=WORKDIR[@CHECKPOINT][:STEPS]")
    return Student(name, run, counts)


def measured(
    model: Any, settings: dict[str, Any], *, samples: int, batch: int, distance: Distance
) -> Cell:
    """Draws `samples` images of all classes in turn; the first batch, which compiles, is not timed.

    Args:
      model: a pipeline.
      settings: of its `sample` section.
      samples: a multiple of `batch`.
      batch: images at once.
      distance: of uint8 images to the training images.
    """
    generator = model.generator(**settings)
    generator(model.params, start=0, count=batch, batch_size=batch)
    start = time.perf_counter()
    images = generator(model.params, start=0, count=samples, batch_size=batch).images
    return Cell(distance(images), 1e3 * (time.perf_counter() - start) / samples, images[:PICTURES])


def table(rows: dict[str, dict[int, Cell]], steps: Sequence[int], *, about: str) -> str:
    """The table as Markdown; a cell is the distance and milliseconds an image."""
    header = "| steps | " + " | ".join(map(str, steps)) + " |"
    lines = [about, "", header, "| --- " * (len(steps) + 1) + "|"]
    for name, cells in rows.items():
        texts = [
            f"{cells[n].distance:.3g} ({cells[n].milliseconds:.2g} ms)" if n in cells else "-"
            for n in steps
        ]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, ""])


def plot(path: Path, rows: dict[str, dict[int, Cell]]) -> None:
    """The distance of each row against the number of steps, both logarithmic."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for name, cells in rows.items():
            steps = sorted(cells)
            of_solver = name.split(",")[0] in SOLVERS
            axes.plot(
                steps, [cells[n].distance for n in steps], "o--" if of_solver else "s-", label=name
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("sampling steps")
        axes.set_ylabel("Fréchet distance")
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False, fontsize=9)
        atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=120))


def grid(path: Path, rows: dict[str, dict[int, Cell]], steps: Sequence[int]) -> None:
    """For each method a row of blocks, one for each number of steps, of the same three garments."""
    some = next(iter(next(iter(rows.values())).values())).images
    blank = np.full_like(some[:3], 255)
    pictures = [
        np.concatenate(list(cells[n].images[[7, 9, 5]] if n in cells else blank), axis=1)
        for cells in rows.values()
        for n in steps
    ]
    labels = [str(n) for n in steps]
    sheet = image_grid(
        np.stack(pictures), columns=len(steps), row_labels=list(rows), column_labels=labels
    )
    save_png(path, sheet)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="workdir of the diffusion model")
    parser.add_argument("--student", type=student, action="append", default=[])
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--out", help="folder of the results; by default the teacher's workdir")
    given = parser.parse_args(arguments)
    config = read_config(expanded(given.teacher))
    if config is None:
        parser.error(f"{given.teacher} holds no run")
    out = expanded(given.out or given.teacher)
    train = load_train(config)
    distance = distance_to(train, load_held_out(config, train) or train)
    rows: dict[str, dict[int, Cell]] = {}

    def measure(name: str, model: Any, settings: dict[str, Any]) -> None:
        try:
            cell = measured(
                model, settings, samples=given.samples, batch=given.batch, distance=distance
            )
        except UserError as error:  # such as a multistep solver with too few steps
            print(f"{name}, {settings['steps']} steps: {error}", flush=True)
            return
        rows.setdefault(name, {})[settings["steps"]] = cell
        print(
            f"{name}, {settings['steps']} steps: {cell.distance:.3f}, {cell.milliseconds:.2f} ms",
            flush=True,
        )

    teacher = diffjax.load(given.teacher)
    for solver in SOLVERS:
        for steps in given.steps:
            measure(solver, teacher, {"sampler": solver, "steps": steps})
    for one in given.student:
        folder, checkpoint = split(one.run)
        model = diffjax.load(folder, checkpoint=checkpoint)
        for steps in one.steps or given.steps:
            measure(one.name, model, {"steps": steps})
    about = f"Fréchet distance of {given.samples} samples to {train.name}, and time an image"
    text = table(rows, given.steps, about=about)
    atomic_write(out / "few_step.md", lambda file: file.write(text.encode()))
    plot(out / "few_step.png", rows)
    grid(out / "few_step_grid.png", rows, given.steps)
    print(f"\n{text}\nwrote few_step.md, few_step.png and few_step_grid.png in {out}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
