"""`--mode=edit`: edits image files and writes the results as a picture and an .npz."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffjax import figures
from diffjax.errors import UserError
from diffjax.experiment import folder_sampling, prompts
from diffjax.experiment.image_files import image_files, read_image
from diffjax.experiment.model import Model
from diffjax.experiment.pictures import class_part, file_stem, pixel_scale
from diffjax.experiment.sampling import EDITS
from diffjax.experiment.spec import from_table
from diffjax.experiment.upscale import Upscale
from diffjax.files import atomic_write, expanded
from diffjax.inference.edit import Editing, EditInputs, row_names
from diffjax.inference.edit_tasks import Task
from diffjax.inference.generator import Generator

_logger = logging.getLogger("diffjax")


class Edit:
    """The images, mask and labels that a config's `edit` section names, read and checked."""

    def __init__(self, model: Model) -> None:
        """Reads the files; nothing is computed yet.

        Raises:
          UserError: a missing file or one that is not an image, a mask or labels that don't match
            the images, or the wrong input for the task.
        """
        c = model.config.edit
        self._config, self._about = model.config, model.about
        what = f"config.edit.task = {c.task!r}"
        self.task: Task = from_table(c.task, EDITS, key="edit.task")
        generator = model.generator()
        if not model.about.images:
            raise UserError(f"{what} edits images, and this is a model of arrays")
        if self.task.of_pixels and model.space.shape != model.space.image_shape:
            raise UserError(
                f"{what} needs a model of pixels, and this model diffuses latents: use inpaint, "
                "repaint, vary, invert or interpolate"
            )
        shape = model.about.shape
        self.files = image_files(c.images, key="edit.images")
        if len(self.files) < self.task.images:
            raise UserError(
                f"{what} needs {self.task.images} images, and config.edit.images = {c.images!r} "
                f"has {len(self.files)}"
            )
        read = [read_image(path, shape, key="edit.images") for path in self.files]
        self.images = np.stack([pixels for pixels, _ in read])
        self.mask = self._read_mask(c.mask, shape, [size for _, size in read])
        self.labels = _labels(model, generator, len(self.files))
        captions = _captions(model, len(self.files), optional=self.task.of_embedding)
        for key, number in generator.conditions.given_images().items():
            if number not in (1, len(self.files)):
                raise UserError(
                    f"config.sample.{key} has {number} images for {len(self.files)} of "
                    "config.edit.images: give one, or one per image"
                )
        inputs = EditInputs(self.images, self.mask, self.labels, captions)
        self.editing = Editing(
            self.task, generator, model.diffusion, model.space, inputs, count=c.count, what=what
        )

    def _read_mask(
        self, name: str, shape: tuple[int, ...], sizes: Sequence[tuple[int, int]]
    ) -> np.ndarray | None:
        task = self._config.edit.task
        if bool(name) != self.task.masked:
            raise UserError(
                f"config.edit.mask is empty: config.edit.task = {task!r} needs a mask image, white "
                "where pixels are kept and black where they are redrawn"
                if self.task.masked
                else f"config.edit.mask = {name!r} has no effect on config.edit.task = {task!r}: "
                "leave it empty, or use the task inpaint or repaint"
            )
        if not name:
            return None
        pixels, size = read_image(expanded(name), (*shape[:2], 1), key="edit.mask")
        for file, other in zip(self.files, sizes, strict=True):
            if size not in (other, shape[:2]):
                raise UserError(
                    f"config.edit.mask = {name!r} is {size[1]}x{size[0]}, but {file} is "
                    f"{other[1]}x{other[0]}: give the mask the image's size"
                )
        mask = (pixels > 127).astype(np.float32)
        share = float(mask.mean())
        if share in (0.0, 1.0):
            colour, what = ("white", "redrawn") if share else ("black", "kept")
            raise UserError(
                f"config.edit.mask = {name!r} is all {colour}: nothing is {what}; make it white "
                "where pixels are kept and black where they are redrawn"
            )
        _logger.info("%s: %.0f %% of the pixels are kept (white)", name, 100 * share)
        return mask

    def write(self, params: Any, folder: Path, *, step: int) -> tuple[Path, Path]:
        """Runs the edit and writes a side-by-side PNG and an .npz under folder/edited.

        The .npz holds images, uint8 (rows, columns, H, W, C), and the names of rows and columns.

        Raises:
          UserError: as `Editing.run`.
        """
        c = self._config
        images = self.editing.run(params)
        rows = row_names([path.stem for path in self.files], self.task)
        columns = self.editing.columns()
        if self.task.comes_back:
            error = (images[:, -1].astype(np.float64) - images[:, 0]) / 127.5
            for name, rms in zip(rows, np.sqrt(np.square(error).mean((1, 2, 3))), strict=True):
                _logger.info("%s: RMS error %.4f of the reconstruction, in a range of 2", name, rms)
        source = expanded(c.edit.images).resolve()
        words = [f"{source.parent.name}-{source.name}", c.edit.task, Path(c.edit.mask).stem]
        words.append(c.edit.prompt)
        words += folder_sampling.given(c).values()
        stem = file_stem(
            c.sample, f"n{c.edit.count}", class_part(c.edit.labels), f"step{step}",
            first="_".join(word for word in words if word), sampler=self.task.uses_sampler,
            exact=bool(c.edit.prompt or folder_sampling.given(c)),
        )  # fmt: skip
        picture, archive = (folder / "edited" / f"{stem}.{kind}" for kind in ("png", "npz"))
        sheet = figures.image_grid(
            images.reshape(-1, *images.shape[2:]),
            columns=len(columns),
            scale=pixel_scale(self._about.shape),
            row_labels=rows,
            column_labels=columns,
        )
        figures.save_png(picture, sheet)
        arrays: dict[str, Any] = {
            "images": images, "rows": np.array(rows), "columns": np.array(columns),
        }  # fmt: skip
        atomic_write(archive, lambda file: np.savez_compressed(file, **arrays))
        return picture, archive


def edit_of(model: Model) -> "Edit | Upscale":
    """The task of a config's `edit` section with its inputs, read and checked.

    Raises:
      UserError: see `Edit` and `Upscale`.
    """
    c = model.config.edit
    task: Task = from_table(c.task, EDITS, key="edit.task")
    if not task.enlarges:
        return Edit(model)
    files = image_files(c.images, key="edit.images")
    labels = _labels(model, model.generator(), len(files))
    return Upscale(model, labels=labels, captions=_captions(model, len(files)), files=files)


def _labels(model: Model, generator: Generator, count: int) -> np.ndarray | None:
    """One label per image, or None for a model without classes."""
    c, num_classes = model.config.edit, model.conditions.num_classes
    if not generator.sampling.uses_labels:
        num_classes = 0
        if c.labels:
            raise UserError(
                f"config.edit.labels = {c.labels} but config.sample.guidance = "
                f"{model.config.sample.guidance!r} has its own labels: leave it empty"
            )
    return edit_labels(tuple(c.labels), count, num_classes, key="config.edit.labels")


def _captions(model: Model, count: int, *, optional: bool = False) -> list[str] | None:
    """One prompt per image; None for a model without text, and for none where it is optional."""
    text = model.config.edit.prompt
    texts = prompts.read(text, key="edit.prompt")
    if model.conditions.texts is None:
        if texts:
            raise UserError(
                f"config.edit.prompt = {text!r} but the model takes no text: leave it empty"
            )
        return None
    if optional and not texts:
        return None
    if len(texts) not in (1, count):
        raise UserError(
            f"config.edit.prompt has {len(texts)} prompts for {count} images: give "
            "one, or one per image, separated by '|'"
        )
    return list(texts) if len(texts) > 1 else list(texts) * count


def edit_labels(
    wanted: tuple[int, ...], images: int, num_classes: int, *, key: str
) -> np.ndarray | None:
    """One label per image, -1 for no class; None for a model without classes.

    Raises:
      UserError: labels that the model does not have, or a wrong number of them.
    """
    if not num_classes:
        if wanted:
            raise UserError(
                f"{key} = {wanted} but the model is not class-conditional: leave it empty"
            )
        return None
    if len(wanted) not in (0, 1, images):
        raise UserError(
            f"{key} has {len(wanted)} labels for {images} images: give one, one per image, or none"
        )
    bad = [label for label in wanted if not -1 <= label < num_classes]
    if bad:
        raise UserError(
            f"{key} has {bad[0]}: expected classes 0..{num_classes - 1}, or -1 for no class"
        )
    return np.broadcast_to(np.asarray(wanted or (-1,), np.int32), images)
