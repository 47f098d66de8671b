"""The pictures in a first stage's workdir."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from diffjax import data, figures
from diffjax.distributed import processes
from diffjax.experiment.dataset import load_held_out
from diffjax.experiment.pictures import pixel_scale
from diffjax.images import to_model_range
from diffjax.latent.first_stage import FirstStage, StageParams
from diffjax.progress import Bar
from diffjax.training import loss_picture

COLUMNS = 8  # pairs of an image and its reconstruction in a row


class Reconstructing(Protocol):
    """The part of an autoencoder's experiment that its pictures show."""

    @property
    def config(self) -> Any:
        """The run's config."""
        ...

    @property
    def source(self) -> data.ImageSource:
        """The training images."""
        ...

    @property
    def stage(self) -> FirstStage:
        """Encodes and decodes."""
        ...


def reconstructions(setup: Reconstructing, params: StageParams, path: Path) -> np.ndarray:
    """Writes test images (or training images without a test set) next to their reconstructions.

    Returns:
      The picture: uint8 (H, W, C).
    """
    source = load_held_out(setup.config, setup.source) or setup.source
    count = min(setup.config.sample.count, len(source))
    images = next(data.batches(source, batch_size=count, seed=setup.config.seed))["image"]
    drawn = reconstructed(setup, params, images, batch_size=setup.config.sample.batch_size)
    pairs = np.stack([images, drawn], axis=1).reshape(-1, *images.shape[1:])
    grid = figures.image_grid(
        pairs, scale=pixel_scale(setup.source.image_shape), columns=2 * min(COLUMNS, count)
    )
    if processes.is_primary():
        figures.save_png(path, grid)
    return grid


def reconstructed(
    setup: Reconstructing, params: StageParams, images: np.ndarray, *, batch_size: int
) -> np.ndarray:
    """Reconstructions from the latents' means: uint8 (N, H, W, C), in batches of one size."""
    reconstruct = jax.jit(lambda params, x: setup.stage.reconstruct(params, to_model_range(x)))
    size = min(batch_size, len(images))
    parts = []
    with Bar("reconstructions", len(images), at_once=size) as bar:
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filled = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
            made = figures.to_uint8(processes.on_host(reconstruct(params, filled)))
            parts.append(made[: len(part)])
            bar(start + size)
    return np.concatenate(parts)


def final(
    setup: Reconstructing, params: StageParams, folder: Path, *, log: Callable[[str], None]
) -> None:
    """Writes reconstructions.png and loss.png."""
    reconstructions(setup, params, folder / "reconstructions.png")
    if processes.is_primary():
        loss_picture.write(folder)
    log(f"wrote {folder / 'reconstructions.png'}, {folder / 'loss.png'}")
