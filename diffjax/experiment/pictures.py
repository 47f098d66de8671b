"""The pictures in a run's workdir."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from diffjax import figures
from diffjax.conditioning.conditions import Conditions
from diffjax.data.info import DataInfo
from diffjax.distributed import processes
from diffjax.experiment import keys
from diffjax.experiment.model import Model
from diffjax.figures import to_uint8
from diffjax.images import to_model_range
from diffjax.inference.generator import Generated, Generator
from diffjax.training import loss_picture

LONGEST_STEM = 180
MOST_COLUMNS = 20  # of a grid with one row per class; longer rows are wrapped
CAPTIONED_WIDTH = 96  # approximate width of an image with a caption
STAGE_ROWS = 8  # samples in the picture of a cascade's stages
DENOISED = 10  # samples in denoising.png and denoising.gif


class Drawing(Protocol):
    """The parts of a resolved config that pictures need."""

    @property
    def config(self) -> Any: ...
    @property
    def about(self) -> DataInfo: ...
    @property
    def conditions(self) -> Conditions: ...
    @property
    def generator(self) -> Any: ...  # a Generator, or another model's with its calls


class ModelDrawing(NamedTuple):
    """A `Drawing` of a model without its training."""

    config: Any
    about: DataInfo
    conditions: Conditions
    generator: Generator


def of_model(model: Model) -> ModelDrawing:
    """The `Drawing` of a model.

    Raises:
      UserError: a `sample` section that is invalid for the model.
    """
    return ModelDrawing(model.config, model.about, model.conditions, model.generator())


def pixel_scale(shape: tuple[int, ...]) -> int:
    """The whole factor that scales small images to about 48 pixels."""
    return max(1, round(48 / max(shape[:2])))


def draw_grid(setup: Drawing, draw: Generated, *, start: int) -> np.ndarray:
    """The samples as one picture: with their prompts, next to their maps, or by class."""
    images = draw.images
    if not setup.about.images:
        labels = setup.generator.conditions.labels(start, len(images))
        return figures.array_sheet(images, labels, setup.about.class_names)
    maps = setup.generator.conditions.map_images(start, len(images))
    captions = setup.generator.conditions.captions(start, len(images))
    if setup.conditions.make_map is None:  # what an inpainting network knows is no map to show
        maps = None
    if captions is not None or maps is not None:
        return _conditioned_grid(setup, images, captions, maps)
    labels = setup.generator.conditions.labels(start, len(images))
    names = setup.about.class_names
    scale = pixel_scale(setup.about.shape)
    if labels is None:
        return figures.image_grid(images, scale=scale)
    order = np.argsort(labels, kind="stable")
    shown, counts = np.unique(labels, return_counts=True)
    if len(shown) == 1 or len(set(counts)) > 1:
        return figures.image_grid(images[order], scale=scale)
    each = int(counts[0])
    even = [n for n in range(5, MOST_COLUMNS + 1) if each % n == 0]
    columns = each if each <= MOST_COLUMNS or not even else even[-1]
    # The first row of a class has its name.
    rows = [
        name if row == 0 else ""
        for name in (names[label] if label >= 0 else "no class" for label in shown)
        for row in range(each // columns)
    ]
    return figures.image_grid(images[order], scale=scale, columns=columns, row_labels=rows)


def _conditioned_grid(
    setup: Drawing, images: np.ndarray, captions: list[str] | None, maps: np.ndarray | None
) -> np.ndarray:
    """Each sample above its prompt, with its map on the left."""
    if maps is not None:
        assert setup.conditions.make_map is not None
        made = setup.conditions.make_map(to_model_range(jnp.asarray(maps)))
        shown = np.broadcast_to(to_uint8(np.asarray(made)), images.shape)
        images = np.concatenate([shown, images], axis=2)
    scale = max(1, round(CAPTIONED_WIDTH / images.shape[2]))
    if captions is None:
        return figures.image_grid(images, scale=scale)
    return figures.image_grid(figures.captioned(images, captions, scale=scale), padding=4)


def draw_stages(setup: Any, stages: Sequence[np.ndarray]) -> np.ndarray:
    """A row for each of the first samples of a cascade, with its image of every stage.

    Where the prompts are the captions of held-out images, these are the last of the row.

    Args:
      setup: the `experiment.cascade.CascadeModel`.
      stages: uint8 (n, h, w, C) of each stage.
    """
    count = min(STAGE_ROWS, len(stages[-1]))
    height, width = stages[-1].shape[1:3]
    columns = [images[:count] for images in stages]
    names = [f"{images.shape[1]}x{images.shape[2]}" for images in stages]
    if setup.truth is not None:
        columns.append(setup.truth[np.arange(count) % len(setup.truth)])
        names.append("held out")
    enlarged = [
        images.repeat(height // images.shape[1], 1).repeat(width // images.shape[2], 2)
        for images in columns
    ]
    captions = setup.generator.conditions.captions(0, count)
    labels = setup.generator.conditions.labels(0, count)
    if captions is None and labels is not None:
        classes = setup.about.class_names
        captions = [classes[label] if label >= 0 else "no class" for label in labels]
    tiles = np.stack(enlarged, axis=1)
    return figures.image_grid(
        tiles.reshape(-1, *tiles.shape[2:]),
        columns=len(names),
        scale=max(1, round(CAPTIONED_WIDTH / width)),
        row_labels=captions,
        column_labels=names,
    )


def stage_settings(config: Any) -> dict[str, Any]:
    """How the stages of a cascade are sampled, as JSON; {} of another config."""
    if "cascade" not in config:
        return {}
    return {"cascade": {k: list(config.cascade[k]) for k in keys.PER_STAGE}}


def stage_parts(config: Any) -> tuple[str, ...]:
    """How the stages of a cascade are sampled, as parts of a file name; () of another config."""
    if "cascade" not in config:
        return ()
    c = config.cascade
    all_settings = repr((c.stages, c.checkpoint, stage_settings(config)))
    steps = "-".join(map(str, c.steps))
    levels = "-".join(f"{level:g}" for level in c.augmentation_level[1:])
    return (f"steps{steps}", f"level{levels}", f"{zlib.crc32(all_settings.encode()):08x}")


def samples(setup: Drawing, params: Any, path: Path) -> np.ndarray:
    """Writes a grid of config.sample.count samples and returns it: uint8 (H, W, C)."""
    draw = setup.generator(params, start=0, count=setup.config.sample.count)
    grid = draw_grid(setup, draw, start=0)
    if processes.is_primary():
        figures.save_png(path, grid)
    return grid


def class_part(labels: tuple[int, ...]) -> str:
    """The labels as part of a file name; "" for none."""
    return "class" + "-".join(map(str, labels)) if labels else ""


def file_stem(
    sample: Any, *parts: str, first: str = "", sampler: bool = True, exact: bool = False
) -> str:
    """A file name that encodes how its images were sampled.

    Args:
      sample: the config's `sample` section.
      *parts: suffixes.
      first: a prefix.
      sampler: whether the name contains the sampler.
      exact: adds a checksum, which distinguishes names that differ only in replaced characters.
    """
    how: tuple[str, ...] = ()
    if "sampler" in sample:  # of a diffusion model
        guidance = "" if sample.guidance.strip() == "none" else sample.guidance
        named = sample.sampler if sampler else ""
        how = (named, f"{sample.grid}{sample.steps}", guidance, sample.threshold)
    level = sample.get("augmentation_level", 0)  # of models of low-resolution images
    noised = f"level{level:g}" if level else ""
    average = "ema" if sample.get("checkpoint") == "ema" else ""  # differs from that step's average
    words = (first, *how, f"seed{sample.seed}", noised, average, *parts)
    name = "_".join(word for word in words if word)
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "._-=") else "_" for c in name)
    if len(stem) <= LONGEST_STEM and not exact:
        return stem
    # File names have at most 255 bytes, including the suffix and that of a temporary file.
    return f"{stem[: LONGEST_STEM - 9]}_{zlib.crc32(name.encode()):08x}"


def final(setup: Drawing, params: Any, folder: Path, *, log: Callable[[str], None]) -> None:
    """Writes samples.png, denoising.png, denoising.gif and loss.png."""
    log("drawing samples")
    samples(setup, params, folder / "samples.png")
    count = DENOISED if setup.about.images else setup.config.sample.count
    draw = setup.generator(params, start=0, count=count, keep_trajectory=True)
    assert draw.trajectory is not None
    if not processes.is_primary():
        return
    sheet, animation = folder / "denoising.png", folder / "denoising.gif"
    if setup.about.images:
        scale = pixel_scale(setup.about.shape)
        figures.save_png(sheet, figures.denoising_strip(draw.trajectory, scale=scale))
        frames = figures.denoising_frames(draw.trajectory, scale=scale)
        figures.save_gif(animation, frames, milliseconds=120, hold_last=2000)
    else:
        figures.save_array_pictures(sheet, animation, draw.trajectory)
    loss_picture.write(folder)
    written = ("samples.png", "denoising.png", "denoising.gif", "loss.png")
    log(f"wrote {', '.join(str(folder / name) for name in written)}")
