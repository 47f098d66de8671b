"""The pictures that a run leaves in its workdir."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from diffjax import figures
from diffjax.conditioning.conditions import Conditions
from diffjax.data.info import DataInfo
from diffjax.distributed import processes
from diffjax.experiment.model import Model
from diffjax.figures import to_uint8
from diffjax.files import atomic_write
from diffjax.images import to_model_range
from diffjax.inference.generator import Draw, Generator
from diffjax.training import loss_picture

LONGEST_STEM = 180
MOST_COLUMNS = 20  # of a grid with a row a class; more of a class go on in the next row
CAPTIONED_WIDTH = 96  # about, of an image with text under it
DENOISED = 10  # samples in denoising.png and denoising.gif


class Drawing(Protocol):
    """What a picture is made of: a resolved config."""

    @property
    def config(self) -> Any: ...
    @property
    def about(self) -> DataInfo: ...
    @property
    def conditions(self) -> Conditions: ...
    @property
    def generator(self) -> Generator: ...


class ModelDrawing(NamedTuple):
    """A `Drawing` of a model without its training."""

    config: Any
    about: DataInfo
    conditions: Conditions
    generator: Generator


def of_model(model: Model) -> ModelDrawing:
    """What pictures of a model are made of.

    Raises:
      UserError: a `sample` section that the model can't fulfil.
    """
    return ModelDrawing(model.config, model.about, model.conditions, model.generator())


def pixel_scale(shape: tuple[int, ...]) -> int:
    """Whole factor that brings small images to about 48 pixels."""
    return max(1, round(48 / max(shape[:2])))


def draw_grid(setup: Drawing, draw: Draw, *, start: int) -> np.ndarray:
    """The samples as one picture: with their prompts, beside their maps, or by class."""
    images = draw.images
    if not setup.about.images:
        labels = setup.generator.labels(start, len(images))
        return figures.array_sheet(images, labels, setup.about.class_names)
    maps = setup.generator.map_images(start, len(images))
    captions = setup.generator.captions(start, len(images))
    if captions is not None or maps is not None:
        return _conditioned_grid(setup, images, captions, maps)
    labels = setup.generator.labels(start, len(images))
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
    # A class's name stands before the first of its rows.
    rows = [
        name if row == 0 else ""
        for name in (names[label] if label >= 0 else "no class" for label in shown)
        for row in range(each // columns)
    ]
    return figures.image_grid(images[order], scale=scale, columns=columns, row_labels=rows)


def _conditioned_grid(
    setup: Drawing, images: np.ndarray, captions: list[str] | None, maps: np.ndarray | None
) -> np.ndarray:
    """Each sample over its prompt, and at the right of what its map shows."""
    if maps is not None:
        assert setup.conditions.make_map is not None
        made = setup.conditions.make_map(to_model_range(jnp.asarray(maps)))
        shown = np.broadcast_to(to_uint8(np.asarray(made)), images.shape)
        images = np.concatenate([shown, images], axis=2)
    scale = max(1, round(CAPTIONED_WIDTH / images.shape[2]))
    if captions is None:
        return figures.image_grid(images, scale=scale)
    return figures.image_grid(figures.captioned(images, captions, scale=scale), padding=4)


def samples(setup: Drawing, params: Any, path: Path) -> np.ndarray:
    """Writes a grid of config.sample.count samples and returns it: uint8 (H, W, C)."""
    draw = setup.generator(params, start=0, count=setup.config.sample.count)
    grid = draw_grid(setup, draw, start=0)
    if processes.is_primary():
        figures.save_png(path, grid)
    return grid


def class_part(labels: tuple[int, ...]) -> str:
    """The labels for a file's name; "" for none."""
    return "class" + "-".join(map(str, labels)) if labels else ""


def file_stem(
    sample: Any, *parts: str, first: str = "", sampler: bool = True, exact: bool = False
) -> str:
    """A file's name that says how its images came: the `sample` section, then other parts.

    Args:
      sample: the config's section.
      *parts: what follows it.
      first: what stands before it.
      sampler: whether the sampler had a part in it.
      exact: whether names that differ in other signs than letters and digits are told apart, too.
    """
    guidance = "" if sample.guidance.strip() == "none" else sample.guidance
    how = (sample.sampler if sampler else "", f"{sample.grid}{sample.steps}", guidance)
    average = "ema" if sample.checkpoint == "ema" else ""  # not the average of the same step
    words = (first, *how, sample.threshold, f"seed{sample.seed}", average, *parts)
    name = "_".join(word for word in words if word)
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "._-=") else "_" for c in name)
    if len(stem) <= LONGEST_STEM and not exact:
        return stem
    # File systems take 255 bytes, a suffix and the name of a file that is being written included.
    return f"{stem[: LONGEST_STEM - 9]}_{zlib.crc32(name.encode()):08x}"


def generated(setup: Drawing, params: Any, folder: Path, *, step: int) -> tuple[Path, Path]:
    """Writes config.sample.count samples as a PNG grid and as an .npz; the names say how they came.

    The .npz holds images, uint8 (N, H, W, C), or for other data x_0, float32 (N, ...); with
    classes labels, int32 (N,), with text prompts, (N,), and with maps map_images, uint8
    (N, H, W, C).
    """
    config = setup.config.sample
    draw = setup.generator(params, start=0, count=config.count)
    labels = setup.generator.labels(0, config.count)
    said = (config.prompt, config.negative_prompt and f"not {config.negative_prompt}", config.maps)
    stem = file_stem(
        config, f"n{config.count}", class_part(config.labels), *said, f"step{step}", exact=any(said)
    )  # fmt: skip
    arrays: dict[str, Any] = {"images" if setup.about.images else "x_0": draw.images}
    captions = setup.generator.captions(0, config.count)
    maps = setup.generator.map_images(0, config.count)
    for name, array in (("labels", labels), ("prompts", captions), ("map_images", maps)):
        if array is not None:
            arrays[name] = np.asarray(array)
    picture, archive = (folder / "generated" / f"{stem}.{kind}" for kind in ("png", "npz"))
    if not processes.is_primary():
        return picture, archive
    figures.save_png(picture, draw_grid(setup, draw, start=0))
    atomic_write(archive, lambda file: np.savez_compressed(file, **arrays))
    return picture, archive


def final(setup: Drawing, params: Any, folder: Path, *, say: Callable[[str], None]) -> None:
    """Writes samples.png, denoising.png, denoising.gif and loss.png."""
    say("drawing samples")
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
    say(f"wrote {', '.join(str(folder / name) for name in written)}")
