"""`--mode=edit`: image files in, a picture of what became of them out."""

import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import figures
from diffjax.data.images import SUFFIXES, UnreadableImage, decode
from diffjax.errors import UserError
from diffjax.files import atomic_write
from diffjax.schedules import Array
from diffjax.training import build_sampling, choices
from diffjax.training.edit_tasks import Row, Task
from diffjax.training.experiment import Experiment
from diffjax.training.pictures import class_part, file_stem, pixel_scale
from diffjax.training.state import to_model_range

_logger = logging.getLogger("diffjax")


class Edit:
    """The images, mask and labels that a config's `edit` section names, read and checked."""

    def __init__(self, setup: Experiment) -> None:
        """Reads the files; nothing is computed yet.

        Raises:
          UserError: a file that is missing or no image, a mask or labels that don't fit, a task
            that wants other input.
        """
        c = setup.config.edit
        self._setup = setup
        self.task: Task = choices.choose(c.task, build_sampling.EDITS, key="edit.task")
        shape = setup.source.image_shape
        self.files = _files(c.images)
        if len(self.files) < self.task.images:
            raise UserError(
                f"config.edit.task = {c.task!r} needs {self.task.images} images, and "
                f"config.edit.images = {c.images!r} has {len(self.files)}"
            )
        read = [_read(path, shape, key="edit.images") for path in self.files]
        self.images = np.stack([pixels for pixels, _ in read])
        self.mask = self._read_mask(c.mask, c.task, shape, [size for _, size in read])
        num_classes = setup.network.num_classes
        if not setup.generator.sampling.uses_labels:
            num_classes = 0
            if c.labels:
                raise UserError(
                    f"config.edit.labels = {c.labels} but config.sample.guidance = "
                    f"{setup.config.sample.guidance!r} names its own: leave it empty"
                )
        self.labels = _labels(tuple(c.labels), len(self.files), num_classes)
        if self.task.images > 1 and self.labels is not None and len(set(self.labels.tolist())) > 1:
            raise UserError(
                f"config.edit.task = {c.task!r} goes from image to image under one label: give one "
                "in config.edit.labels"
            )

    def _read_mask(
        self,
        name: str,
        task: str,
        shape: tuple[int, int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> np.ndarray | None:
        if bool(name) != self.task.masked:
            raise UserError(
                f"config.edit.mask is empty: config.edit.task = {task!r} needs an image, white "
                "where the image is kept and black where it is drawn anew"
                if self.task.masked
                else f"config.edit.mask = {name!r} has no use for config.edit.task = {task!r}: "
                "leave it empty, or take the task inpaint or repaint"
            )
        if not name:
            return None
        path = Path(os.path.expanduser(name))
        pixels, size = _read(path, (*shape[:2], 1), key="edit.mask")
        for file, other in zip(self.files, sizes, strict=True):
            if size not in (other, shape[:2]):
                raise UserError(
                    f"config.edit.mask = {name!r} is {size[1]}x{size[0]}, but {file} is "
                    f"{other[1]}x{other[0]}: give the mask the image's size"
                )
        mask = (pixels > 127).astype(np.float32)
        share = float(mask.mean())
        if share in (0.0, 1.0):
            colour, what = ("white", "to be drawn") if share else ("black", "kept")
            raise UserError(
                f"config.edit.mask = {name!r} is all {colour}: nothing is {what}; make it white "
                "where the image is kept and black where it is drawn anew"
            )
        _logger.info("%s: %.0f %% of the pixels are kept (white)", name, 100 * share)
        return mask

    def function(self, count: int) -> Any:
        """The pure function (params, weak_params, images, mask, label, indices) -> images."""
        generator, diffusion = self._setup.generator, self._setup.diffusion

        def edited(
            params: Any, weak_params: Any, images: Array, mask: Array, label: Array, indices: Array
        ) -> Array:
            eps, keys = generator.noise(indices)
            return self.task.run(
                Row(
                    images=to_model_range(images),
                    mask=mask,
                    eps=eps,
                    keys=keys,
                    label=label,
                    guided=generator.guided(params, weak_params),
                    threshold=generator.threshold,
                    schedule=diffusion.schedule,
                    sampler=generator.sampling.sampler,
                    grid=generator.sampling.grid,
                )
            )

        return edited

    def run(self, params: Any) -> np.ndarray:
        """All rows, one after the other: uint8 (rows, columns, H, W, C).

        Raises:
          UserError: the sampler can't do the task, or a value is not finite.
        """
        config = self._setup.config
        count = config.edit.count
        edited = jax.jit(self.function(count))
        weak_params = self._setup.generator.weak_params
        rows = []
        for i in range(len(self.files) - self.task.images + 1):
            label = None if self.labels is None else jnp.asarray(self.labels[i])
            indices = i * count + np.arange(count)
            try:
                row = np.asarray(
                    edited(params, weak_params, self.images[i : i + self.task.images], self.mask,
                           label, indices)
                )  # fmt: skip
            except (ValueError, TypeError, ZeroDivisionError) as error:
                first = str(error).splitlines()[0]
                raise UserError(f"config.edit.task = {config.edit.task!r}: {first}") from error
            if not np.isfinite(row).all():
                raise UserError(
                    f"{self.files[i]}: values that are not finite came out: take more "
                    "config.sample.steps or config.sample.threshold='clip'"
                )
            rows.append(figures.to_uint8(row))
        return np.stack(rows)

    def row_names(self) -> list[str]:
        """One name a row: the file's, or from which file to which."""
        names = [path.stem for path in self.files]
        if self.task.images == 1:
            return names
        return [f"{a} - {b}" for a, b in itertools.pairwise(names)]

    def write(self, params: Any, folder: Path, *, step: int) -> tuple[Path, Path]:
        """Does the edit, and writes a side-by-side PNG and an .npz under folder/edited.

        The .npz holds images, uint8 (rows, columns, H, W, C), and the names of rows and columns.

        Raises:
          UserError: as `run`.
        """
        c = self._setup.config
        images = self.run(params)
        rows = self.row_names()
        columns = list(self.task.columns(c.edit.count))
        if self.task.comes_back:
            error = (images[:, -1].astype(np.float64) - images[:, 0]) / 127.5
            for name, rms in zip(rows, np.sqrt(np.square(error).mean((1, 2, 3))), strict=True):
                _logger.info("%s comes back with an RMS error of %.4f, of a range of 2", name, rms)
        source = Path(os.path.expanduser(c.edit.images)).resolve()
        words = [f"{source.parent.name}-{source.name}", c.edit.task, Path(c.edit.mask).stem]
        stem = file_stem(
            c.sample, f"n{c.edit.count}", class_part(c.edit.labels), f"step{step}",
            first="_".join(word for word in words if word), sampler=self.task.uses_sampler,
        )  # fmt: skip
        picture, archive = (folder / "edited" / f"{stem}.{kind}" for kind in ("png", "npz"))
        sheet = figures.image_grid(
            images.reshape(-1, *images.shape[2:]),
            columns=len(columns),
            scale=pixel_scale(self._setup.source.image_shape),
            row_labels=rows,
            column_labels=columns,
        )
        figures.save_png(picture, sheet)
        arrays: dict[str, Any] = {
            "images": images, "rows": np.array(rows), "columns": np.array(columns),
        }  # fmt: skip
        atomic_write(archive, lambda file: np.savez_compressed(file, **arrays))
        return picture, archive


def _files(name: str) -> list[Path]:
    """The image that `name` is, or the images in the folder that it is, by name."""
    if not name:
        raise UserError("config.edit.images is empty: name an image file or a folder of them")
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(
                f"config.edit.images = {name!r} holds no image: expected {', '.join(SUFFIXES)}"
            )
        return found
    if not path.is_file():
        raise UserError(f"config.edit.images = {name!r}: there is no such file or folder")
    return [path]


def _read(
    path: Path, shape: tuple[int, int, int], *, key: str
) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels at the model's size, uint8 (H, W, C), and the file's own (height, width)."""
    height, width, channels = shape
    try:
        data = path.read_bytes()
        pixels = decode(data, channels=channels)
    except OSError as error:
        raise UserError(f"config.{key}: {path} can't be read: {error.strerror}") from error
    except UnreadableImage as error:
        raise UserError(f"config.{key}: {path} is not an image that can be read: {error}") from None
    size = (pixels.shape[0], pixels.shape[1])
    if size == (height, width):
        return pixels, size
    if height != width:
        raise UserError(
            f"config.{key}: {path} is {size[1]}x{size[0]}, and the model draws {width}x{height}: "
            "resize the file"
        )
    _logger.info(
        "%s: the middle of %dx%d, resized to the model's %dx%d", path, *size[::-1], width, height
    )
    return decode(data, image_size=height, channels=channels), size


def _labels(wanted: tuple[int, ...], images: int, num_classes: int) -> np.ndarray | None:
    """One label an image, -1 for no class; None for a model without classes."""
    if not num_classes:
        if wanted:
            raise UserError(
                f"config.edit.labels = {wanted} but the model is not class-conditional: leave it "
                "empty"
            )
        return None
    if len(wanted) not in (0, 1, images):
        raise UserError(
            f"config.edit.labels has {len(wanted)} labels for {images} images: give one, one an "
            "image, or none"
        )
    bad = [label for label in wanted if not -1 <= label < num_classes]
    if bad:
        raise UserError(
            f"config.edit.labels has {bad[0]}: expected classes 0..{num_classes - 1}, or -1 for no "
            "class"
        )
    return np.broadcast_to(np.asarray(wanted or (-1,), np.int32), images)
