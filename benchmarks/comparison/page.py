"""The comparison as Markdown and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from diffjax import figures
from diffjax.files import atomic_write

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # model's name -> one for each seed
ROW = 10  # samples of a model in the picture
NEIGHBOURS = 8

ABOUT = """# GAN, PixelCNN++ and diffusion at an equal cost of training

Every introduction to diffusion models says how they compare with what came before: better samples
than likelihood-based models, a stabler training with more variety than a GAN, and slow sampling.
This page measures it, on Fashion-MNIST (Xiao et al. 2017; MIT licence), for small models that two
CPU cores can train. All are conditional on the class, each has {budget:.3g} FLOPs of training (a
latent model and its first stage together), and each was trained with {seeds}.
Small budgets favour models that learn fast, so this is no statement about long trainings.

    python -m benchmarks.comparison --workdir=runs/comparison --out=docs

{machine}
"""

EXPLAINED = """
* **CFD**: Fréchet distance of {samples} samples to all training images, in the features of the
  classifier that ships with diffjax; {samples} test images have {floor}.
  Median, and range over the seeds: how far these are apart is how stable the training is.
* **precision, recall** (Kynkäänniemi et al. 2019; k = 3, {samples} images a side): of test images
  {test_precision:.2f} and {test_recall:.2f}.
* **class**: samples that the classifier gives the class they were asked for (it is right about
  {accuracy:.1%} of the test images); **rarest class**: its share over a tenth.
* **distinct**: distinct nearest training images, in the classifier's features, over the number of
  samples: a check of mode collapse. Of test images {test_distinct:.2f}.
* **copies**: samples nearer to a training image, in pixels, than 99 % of the test images are; a
  model that copies nothing has about 1 %. Blurred and plain samples are near to many images, so
  look at the picture of the neighbours, too.
* **bits/dim**: of test images; exact of PixelCNN++, an upper bound of diffusion in pixels. That one
  is trained for samples: its loss hardly weighs the low noise levels, which most bits are spent on,
  so the bound is loose. Trained for the bound, by `experiments/fashion_mnist_likelihood.py` for an
  hour, diffusion has 2.94. A GAN has no likelihood, and a latent model's is not one of pixels.
* **training, sampling**: at a training's median rate, and the quickest of the seeds, since other
  work on the machine can only slow one down. Second-order gradients and convolutions with many
  small maps take a CPU longer than their FLOPs say. Diffusion in pixels takes 50 steps and in
  latents 40, with guidance; in four steps, it is MeanFlow (Geng et al. 2025), trained from nothing.

![Ten samples of each model, one a class](comparison.png)

The first seed's samples, one of each class, not chosen. The same samples' nearest training images,
in pixels, stand below each row:

![Samples and their nearest training images](neighbours.png)
"""

COLUMNS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("CFD", "frechet_distance", lambda x: f"{x:.3g}"),
    ("precision", "precision", lambda x: f"{x:.2f}"),
    ("recall", "recall", lambda x: f"{x:.2f}"),
    ("class", "agreement", lambda x: f"{x:.0%}"),
    ("rarest class", "least_class_share", lambda x: f"{x:.2f}"),
    ("distinct", "distinct_neighbours", lambda x: f"{x:.2f}"),
    ("copies", "copied_share", lambda x: f"{x:.1%}"),
    ("bits/dim", "bits_per_dim", lambda x: f"{x:.2f}"),
)
COSTS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("parameters", "parameters", lambda x: f"{x / 1e6:.2f} M"),
    ("images seen", "images", lambda x: f"{x:,.0f}"),
    ("training", "training_seconds", lambda x: f"{x / 60:.0f} min"),
    ("sampling", "seconds_per_image", lambda x: f"{1000 * x:.2g} ms an image"),
)


def cell(
    values: Sequence[float | None],
    shown: Callable[[float], str],
    *,
    ranges: bool,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> str:
    """The median over the seeds (or another function of them), with their range where there is one.

    >>> cell([1.0, 3.0, 2.0], str, ranges=True), cell([None], str, ranges=True)
    ('2.0 (1.0 to 3.0)', '-')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = shown(of(known))
    if not ranges or len(known) == 1:
        return middle
    return f"{middle} ({shown(min(known))} to {shown(max(known))})"


def table(
    results: Results,
    columns: Sequence[tuple[str, str, Callable[[float], str]]],
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> list[str]:
    """A Markdown table with a row for each model; ranges only of Fréchet distances."""
    lines = [
        f"| | {' | '.join(title for title, _, _ in columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    for name, seeds in results.items():
        cells = [
            cell([one[key] for one in seeds], shown, ranges=key == "frechet_distance", of=of)
            for _, key, shown in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def markdown(results: Results) -> str:
    """The page.

    Args:
      results: of models that were measured with the same settings.
    """
    measured = [one for seeds in results.values() for one in seeds]
    first = measured[0]
    settings = first["settings"]
    low_high = first["floor_equal_count_range"]
    floor = f"{first['floor_equal_count']:.3g}"
    if low_high:
        floor += f" ({low_high[0]:.3g} to {low_high[1]:.3g} in ten draws)"
    most = max(len(seeds) for seeds in results.values())
    about = ABOUT.format(
        budget=settings["budget"],
        seeds="one seed" if most == 1 else f"{most} seeds",
        machine=machine.describe("cpu"),
    )
    explained = EXPLAINED.format(
        samples=f"{settings['samples']:,}",
        floor=floor,
        test_precision=first["test_precision"],
        test_recall=first["test_recall"],
        accuracy=first["classifier_accuracy"],
        test_distinct=first["test_distinct_neighbours"],
    )
    lines = [about, *table(results, COLUMNS), "", *table(results, COSTS, of=min), explained]
    return "\n".join(lines)


def write(
    results: Results, pictures: Mapping[str, Mapping[str, np.ndarray]], folder: Path
) -> list[Path]:
    """Writes comparison.md, comparison.png and neighbours.png; returns their paths.

    Args:
      results: see `markdown`.
      pictures: of each model, "images" and "neighbours", uint8 (n, H, W, C).
      folder: where to; created if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, samples, beside = (
        folder / name for name in ("comparison.md", "comparison.png", "neighbours.png")
    )
    names = list(pictures)
    rows = [pictures[name]["images"][:ROW] for name in names]
    figures.save_png(
        samples,
        figures.image_grid(np.concatenate(rows), columns=ROW, scale=2, row_labels=names),
    )
    pairs, labels = [], []
    for name in names:
        pairs += [pictures[name][key][:NEIGHBOURS] for key in ("images", "neighbours")]
        labels += [name, "nearest"]
    figures.save_png(
        beside,
        figures.image_grid(np.concatenate(pairs), columns=NEIGHBOURS, scale=2, row_labels=labels),
    )
    text = markdown(results)
    atomic_write(page, lambda file: file.write(text.encode()))
    return [page, samples, beside]
