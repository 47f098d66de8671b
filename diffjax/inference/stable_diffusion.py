"""Stable Diffusion as functions of arrays, for images of any size.

import diffjax
model = diffjax.load("path/to/stable-diffusion-v1-5")
images = model.sample(["a red apple"], steps=30, guidance="classifier_free(scale=7.5)")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.inference.inputs import low_resolution_of
from diffjax.inference.pipeline import Pipeline
from diffjax.stable_diffusion.folder import Folder
from diffjax.stable_diffusion.save import save, with_process
from diffjax.stable_diffusion.weights_writer import SHARD_BYTES


class StableDiffusion(Pipeline):
    """A `Pipeline` of images of one size, and those of other sizes by `at_size`."""

    def __init__(
        self,
        *,
        of_size: Callable[[tuple[int, int]], StableDiffusion],
        folder: Folder,
        **parts: Any,
    ) -> None:
        """Takes the parts that `experiment.stable_diffusion` resolves.

        Args:
          of_size: (height, width) -> the pipeline of images of that size, with the same parameters.
          folder: that it is of.
          **parts: as for `Pipeline`.
        """
        super().__init__(**parts)
        self._of_size, self._folder = of_size, folder

    def save(
        self, out: str | Path, *, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
    ) -> list[Path]:
        """Writes a folder that diffusers loads; see `stable_diffusion.save.save`.

        Args:
          out: a new or empty folder.
          dtype: of the weights, "float32", "bfloat16" or "float16"; None for that of now.
          shard_bytes: of a file of weights; a network with more is written as several.

        Returns:
          The written files.

        Raises:
          UserError: as `stable_diffusion.save.save`.
        """
        folder = with_process(self._folder, self.diffusion)
        return save(folder, out, params=self.params, dtype=dtype, shard_bytes=shard_bytes)

    def at_size(self, height: int | None = None, width: int | None = None) -> StableDiffusion:
        """The pipeline of images of another height and width; those of now for None.

        Raises:
          UserError: sides that are no multiples of the first stage's factor.
        """
        own = self.space.image_shape[:2]
        size = (
            own[0] if height is None else arguments.whole("height", height, least=1),
            own[1] if width is None else arguments.whole("width", width, least=1),
        )
        return self if size == own else self._of_size(size)

    def sample(
        self,
        prompts: Sequence[str] = (),
        *,
        height: int | None = None,
        width: int | None = None,
        **how: Any,
    ) -> np.ndarray:
        """Draws samples; see `Pipeline.sample`.

        Args:
          prompts: texts, repeated cyclically if `count` is larger.
          height, width: of the images; by default those that the model was trained on.
          **how: count, seed and settings: sampler, grid, steps, guidance, threshold,
            negative_prompt, batch_size.

        Returns:
          uint8 (count, height, width, C).

        Raises:
          UserError: no prompts, or an invalid setting.
        """
        return Pipeline.sample(self.at_size(height, width), prompts, **how)

    def edit(self, images: np.ndarray, task: str, **how: Any) -> np.ndarray:
        """Edits images of any size; see `Pipeline.edit`.

        Args:
          images: uint8 (n, H, W, C), H and W multiples of the first stage's factor.
          task: "vary(strength=0.5)", "inpaint", "repaint", "invert", "interpolate".
          **how: as for `Pipeline.edit`.

        Raises:
          UserError: images or conditions that the model or the task does not support.
        """
        given = low_resolution_of("images", images, channels=self.space.image_shape[-1])
        if not how.get("prompts"):
            raise UserError(f"{task} needs prompts: give one for all images, or one each")
        return Pipeline.edit(self.at_size(*given.shape[1:3]), given, task, **how)
