"""The pictures that a run leaves in its workdir."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffjax import figures
from diffjax.files import atomic_write
from diffjax.training.experiment import Experiment
from diffjax.training.logs import read_rows
from diffjax.training.sampling import Draw

LONGEST_STEM = 180
MOST_COLUMNS = 20  # of a grid with a row a class; more of a class go on in the next row
DENOISED = 10  # samples in denoising.png and denoising.gif


def pixel_scale(shape: tuple[int, int, int]) -> int:
    """Whole factor that brings small images to about 48 pixels."""
    return max(1, round(48 / max(shape[:2])))


def draw_grid(setup: Experiment, draw: Draw, *, start: int) -> np.ndarray:
    """The samples as one picture: a named row, or some, for each class where there are classes."""
    images = draw.images
    labels = setup.generator.labels(start, len(images))
    names = setup.source.class_names
    scale = pixel_scale(setup.source.image_shape)
    if labels is None:
        return figures.image_grid(images, scale=scale)
    order = np.argsort(labels, kind="stable")
    shown, counts = np.unique(labels, return_counts=True)
    if len(shown) == 1 or len(set(counts)) > 1:
        return figures.image_grid(images[order], scale=scale)
    each = int(counts[0])
    even = [n for n in range(5, MOST_COLUMNS + 1) if each % n == 0]
    columns = each if each <= MOST_COLUMNS or not even else even[-1]
    # A class's name stands before the first of its rows.
    rows = [
        name if row == 0 else ""
        for name in (names[label] if label >= 0 else "no class" for label in shown)
        for row in range(each // columns)
    ]
    return figures.image_grid(images[order], scale=scale, columns=columns, row_labels=rows)


def samples(setup: Experiment, params: Any, path: Path) -> np.ndarray:
    """Writes a grid of config.sample.count samples and returns it: uint8 (H, W, C)."""
    draw = setup.generator(params, start=0, count=setup.config.sample.count)
    grid = draw_grid(setup, draw, start=0)
    figures.save_png(path, grid)
    return grid


def class_part(labels: tuple[int, ...]) -> str:
    """The labels for a file's name; "" for none."""
    return "class" + "-".join(map(str, labels)) if labels else ""


def file_stem(sample: Any, *parts: str, first: str = "", sampler: bool = True) -> str:
    """A file's name that says how its images came: the `sample` section, then other parts.

    Args:
      sample: the config's section.
      *parts: what follows it.
      first: what stands before it.
      sampler: whether the sampler had a part in it.
    """
    guidance = "" if sample.guidance.strip() == "none" else sample.guidance
    how = (sample.sampler if sampler else "", f"{sample.grid}{sample.steps}", guidance)
    words = (first, *how, sample.threshold, f"seed{sample.seed}", *parts)
    name = "_".join(word for word in words if word)
    stem = "".join(c if c.isalnum() or c in "._-=" else "_" for c in name)
    if len(stem) <= LONGEST_STEM:
        return stem
    # File systems take 255 bytes, a suffix and the name of a file that is being written included.
    return f"{stem[: LONGEST_STEM - 9]}_{zlib.crc32(stem.encode()):08x}"


def generated(setup: Experiment, params: Any, folder: Path, *, step: int) -> tuple[Path, Path]:
    """Writes config.sample.count samples as a PNG grid and as an .npz; the names say how they came.

    The .npz holds images, uint8 (N, H, W, C), and, with classes, labels, int32 (N,).
    """
    config = setup.config.sample
    draw = setup.generator(params, start=0, count=config.count)
    labels = setup.generator.labels(0, config.count)
    stem = file_stem(config, f"n{config.count}", class_part(config.labels), f"step{step}")
    arrays: dict[str, Any] = {"images": draw.images}
    if labels is not None:
        arrays["labels"] = labels
    picture, archive = (folder / "generated" / f"{stem}.{kind}" for kind in ("png", "npz"))
    figures.save_png(picture, draw_grid(setup, draw, start=0))
    atomic_write(archive, lambda file: np.savez_compressed(file, **arrays))
    return picture, archive


def loss(folder: Path) -> None:
    """Writes loss.png from metrics.jsonl."""
    figures.plot_loss(folder / "loss.png", read_rows(folder / "metrics.jsonl"))


def final(setup: Experiment, params: Any, folder: Path, *, say: Callable[[str], None]) -> None:
    """Writes samples.png, denoising.png, denoising.gif and loss.png."""
    say("drawing samples")
    samples(setup, params, folder / "samples.png")
    draw = setup.generator(params, start=0, count=DENOISED, keep_trajectory=True)
    assert draw.trajectory is not None
    scale = pixel_scale(setup.source.image_shape)
    figures.save_png(
        folder / "denoising.png", figures.denoising_strip(draw.trajectory, scale=scale)
    )
    figures.save_gif(
        folder / "denoising.gif",
        figures.denoising_frames(draw.trajectory, scale=scale),
        milliseconds=120,
        hold_last=2000,
    )
    loss(folder)
    written = ("samples.png", "denoising.png", "denoising.gif", "loss.png")
    say(f"wrote {', '.join(str(folder / name) for name in written)}")
