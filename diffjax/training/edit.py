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
from diffjax.errors import UserError
from diffjax.files import atomic_write
from diffjax.models.condition import Condition, SpatialMap
from diffjax.schedules import Array
from diffjax.training import build_sampling, choices, prompts
from diffjax.training.edit_tasks import Row, Task
from diffjax.training.experiment import Experiment
from diffjax.training.image_files import image_files, read_image
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
        if self.task.of_pixels and setup.space.shape != setup.source.image_shape:
            raise UserError(
                f"config.edit.task = {c.task!r} measures pixels, and this model diffuses latents: "
                "take inpaint, repaint, vary, invert or interpolate"
            )
        shape = setup.source.image_shape
        self.files = image_files(c.images, key="edit.images")
        if len(self.files) < self.task.images:
            raise UserError(
                f"config.edit.task = {c.task!r} needs {self.task.images} images, and "
                f"config.edit.images = {c.images!r} has {len(self.files)}"
            )
        read = [read_image(path, shape, key="edit.images") for path in self.files]
        self.images = np.stack([pixels for pixels, _ in read])
        self.mask = self._read_mask(c.mask, c.task, shape, [size for _, size in read])
        num_classes = setup.conditions.num_classes
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
        self.captions = self._read_prompts(c.prompt)

    def _read_prompts(self, text: str) -> list[str] | None:
        """One prompt an image, or None for a model without text."""
        wanted = prompts.read(text, key="edit.prompt")
        if self._setup.conditions.texts is None:
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
        if self.task.images > 1 and len(set(wanted)) > 1:
            raise UserError(
                f"config.edit.task = {self._setup.config.edit.task!r} goes from image to image "
                "under one prompt: give one in config.edit.prompt"
            )
        return list(wanted) if len(wanted) > 1 else list(wanted) * len(self.files)

    def _condition(self, i: int) -> Condition | None:
        """Of row i, for one example."""
        generator = self._setup.generator
        label = None if self.labels is None else self.labels[i : i + 1]
        text = None if self.captions is None else generator.text([self.captions[i]])
        made = self._setup.space.map_of(to_model_range(jnp.asarray(self.images[i : i + 1])))
        spatial = None if made is None else SpatialMap(made, np.ones(1, bool))  # its own
        if label is None and text is None and spatial is None:
            return None
        return Condition(label, text, spatial)

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
        pixels, size = read_image(path, (*shape[:2], 1), key="edit.mask")
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
        if not np.asarray(self._setup.space.mask(mask)).any():
            raise UserError(
                f"config.edit.mask = {name!r} keeps no block of pixels whole that a latent stands "
                "for: keep larger areas"
            )
        _logger.info("%s: %.0f %% of the pixels are kept (white)", name, 100 * share)
        return mask

    def function(self, count: int) -> Any:
        """The pure function (params, weak_params, x_0, mask, condition, indices) -> x_0s."""
        generator, diffusion = self._setup.generator, self._setup.diffusion

        def edited(
            params: Any, weak_params: Any, x_0: Array, mask: Array, condition: Any, indices: Array
        ) -> Array:
            eps, keys = generator.noise(indices)
            return self.task.run(
                Row(
                    images=x_0,
                    mask=mask,
                    eps=eps,
                    keys=keys,
                    condition=condition,
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
        space = self._setup.space
        mask = None if self.mask is None else space.mask(self.mask)
        rows = []
        for i in range(len(self.files) - self.task.images + 1):
            indices = i * count + np.arange(count)
            images = to_model_range(jnp.asarray(self.images[i : i + self.task.images]))
            try:
                x_0 = edited(
                    params, weak_params, space.of_images(images), mask, self._condition(i), indices
                )
                row = np.asarray(self._with_given(space.to_images(x_0), images))
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

    def _with_given(self, row: Array, images: Array) -> Array:
        """The row with the pixels that were given, where a first stage has been in between."""
        row = jnp.concatenate([images[:1], row[1:]])
        if self.task.images > 1:
            row = jnp.concatenate([row[:-1], images[-1:]])
        if self.mask is None:
            return row
        keep = jnp.asarray(self.mask) > 0.5
        known = jnp.where(keep, images[:1], 0.0)
        return jnp.concatenate([images[:1], known, jnp.where(keep, images[:1], row[2:])])

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
