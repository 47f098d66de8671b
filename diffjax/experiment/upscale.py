"""`--mode=edit --config.edit.task=upscale`: enlarges image files of any size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffjax import figures
from diffjax.errors import UserError
from diffjax.experiment.image_files import read_low_resolution
from diffjax.experiment.model import Model
from diffjax.experiment.pictures import class_part, file_stem
from diffjax.inference.sample_conditions import Choice
from diffjax.inference.upscaling import Upscaling


class Upscale:
    """The low-resolution images and conditions of a config's `edit` section, read and checked."""

    def __init__(
        self, model: Model, *, labels: Any, captions: Sequence[str] | None, files: Sequence[Path]
    ) -> None:
        """Reads the files; nothing is computed yet.

        Args:
          model: the model.
          labels, captions: one per file, or None.
          files: the image files.

        Raises:
          UserError: a model without the map, a mask, or a file that is of other channels or not a
            readable image.
        """
        c = model.config.edit
        self._config, self._labels, self._captions = model.config, labels, captions
        what = f"config.edit.task = {c.task!r}"
        channels = model.about.shape[-1]
        self._upscaling = Upscaling(model.generator(), what=what)
        if c.mask:
            raise UserError(
                f"config.edit.mask = {c.mask!r} has no effect on {what}: leave it empty"
            )
        self.files = list(files)
        names = [path.stem for path in self.files]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(
                f"config.edit.images = {c.images!r} has several files called {twice[0]!r}, and "
                "results are named by them: rename all but one"
            )
        self.images = [
            read_low_resolution(path, channels, key="edit.images") for path in self.files
        ]

    def write(self, params: Any, folder: Path, *, step: int) -> list[Path]:
        """Writes config.edit.count PNGs of each file under folder/edited.

        Raises:
          UserError: as `Upscaling`.
        """
        c, factor = self._config, self._upscaling.factor
        written = []
        for i, (path, image) in enumerate(zip(self.files, self.images, strict=True)):
            choice = Choice(
                () if self._labels is None else (int(self._labels[i]),),
                () if self._captions is None else (self._captions[i],),
            )
            drawn = self._upscaling(params, image[None], choice, count=c.edit.count)[0, 1:]
            stem = file_stem(
                c.sample, class_part(c.edit.labels), f"step{step}",
                first=f"{path.stem}_x{factor}", exact=bool(c.edit.prompt),
            )  # fmt: skip
            for number, pixels in enumerate(drawn, start=1):
                written.append(folder / "edited" / f"{stem}_{number}.png")
                figures.save_png(written[-1], pixels)
        return written
