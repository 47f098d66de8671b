"""`--mode=edit`: image files in, a picture of what became of them out."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffjax import figures
from diffjax.errors import UserError
from diffjax.experiment import prompts
from diffjax.experiment.image_files import image_files, read_image
from diffjax.experiment.model import Model
from diffjax.experiment.pictures import class_part, file_stem, pixel_scale
from diffjax.experiment.sampling import EDITS
from diffjax.experiment.spec import from_table
from diffjax.files import atomic_write, expanded
from diffjax.inference.edit import Editing, row_names
from diffjax.inference.edit_tasks import Task

_logger = logging.getLogger("diffjax")


class Edit:
    """The images, mask and labels that a config's `edit` section names, read and checked."""

    def __init__(self, model: Model) -> None:
        """Reads the files; nothing is computed yet.

        Raises:
          UserError: a file that is missing or no image, a mask or labels that don't fit, a task
            that wants other input.
        """
        c = model.config.edit
        self._config, self._about = model.config, model.about
        what = f"config.edit.task = {c.task!r}"
        self.task: Task = from_table(c.task, EDITS, key="edit.task")
        generator = model.generator()
        if not model.about.images:
            raise UserError(f"{what}: edits are of images, and {c.task!r} got a model of arrays")
        if self.task.of_pixels and model.space.shape != model.space.image_shape:
            raise UserError(
                f"{what} measures pixels, and this model diffuses latents: take inpaint, repaint, "
                "vary, invert or interpolate"
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
        num_classes = model.conditions.num_classes
        if not generator.sampling.uses_labels:
            num_classes = 0
            if c.labels:
                raise UserError(
                    f"config.edit.labels = {c.labels} but config.sample.guidance = "
                    f"{model.config.sample.guidance!r} names its own: leave it empty"
                )
        self.labels = edit_labels(
            tuple(c.labels), len(self.files), num_classes, key="config.edit.labels"
        )
        captions = self._read_prompts(c.prompt, takes_text=model.conditions.texts is not None)
        self.editing = Editing(
            self.task, generator, model.diffusion, model.space, images=self.images, count=c.count,
            mask=self.mask, labels=self.labels, captions=captions, what=what,
        )  # fmt: skip

    def _read_prompts(self, text: str, *, takes_text: bool) -> list[str] | None:
        """One prompt an image, or None for a model without text."""
        wanted = prompts.read(text, key="edit.prompt")
        if not takes_text:
            if wanted:
                raise UserError(
                    f"config.edit.prompt = {text!r} but the model takes no text: leave it empty"
                )
            return None
        if len(wanted) not in (1, len(self.files)):
            raise UserError(
                f"config.edit.prompt has {len(wanted)} prompts for {len(self.files)} images: give "
                "one, or one an image, with '|' between them"
            )
        return list(wanted) if len(wanted) > 1 else list(wanted) * len(self.files)

    def _read_mask(
        self, name: str, shape: tuple[int, ...], sizes: Sequence[tuple[int, int]]
    ) -> np.ndarray | None:
        task = self._config.edit.task
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
            colour, what = ("white", "to be drawn") if share else ("black", "kept")
            raise UserError(
                f"config.edit.mask = {name!r} is all {colour}: nothing is {what}; make it white "
                "where the image is kept and black where it is drawn anew"
            )
        _logger.info("%s: %.0f %% of the pixels are kept (white)", name, 100 * share)
        return mask

    def write(self, params: Any, folder: Path, *, step: int) -> tuple[Path, Path]:
        """Does the edit, and writes a side-by-side PNG and an .npz under folder/edited.

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
                _logger.info("%s comes back with an RMS error of %.4f, of a range of 2", name, rms)
        source = expanded(c.edit.images).resolve()
        words = [f"{source.parent.name}-{source.name}", c.edit.task, Path(c.edit.mask).stem]
        words.append(c.edit.prompt)
        stem = file_stem(
            c.sample, f"n{c.edit.count}", class_part(c.edit.labels), f"step{step}",
            first="_".join(word for word in words if word), sampler=self.task.uses_sampler,
            exact=bool(c.edit.prompt),
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


def edit_labels(
    wanted: tuple[int, ...], images: int, num_classes: int, *, key: str
) -> np.ndarray | None:
    """One label an image, -1 for no class; None for a model without classes.

    Raises:
      UserError: labels that the model does not have, or not one an image.
    """
    if not num_classes:
        if wanted:
            raise UserError(
                f"{key} = {wanted} but the model is not class-conditional: leave it empty"
            )
        return None
    if len(wanted) not in (0, 1, images):
        raise UserError(
            f"{key} has {len(wanted)} labels for {images} images: give one, one an image, or none"
        )
    bad = [label for label in wanted if not -1 <= label < num_classes]
    if bad:
        raise UserError(
            f"{key} has {bad[0]}: expected classes 0..{num_classes - 1}, or -1 for no class"
        )
    return np.broadcast_to(np.asarray(wanted or (-1,), np.int32), images)
