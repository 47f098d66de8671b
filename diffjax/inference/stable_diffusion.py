"""Stable Diffusion as functions of arrays, for images of any size.

import diffjax
model = diffjax.load("path/to/stable-diffusion-v1-5")
images = model.sample(["a red apple"], steps=30, guidance="classifier_free(scale=7.5)")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.inference.inputs import low_resolution_of
from diffjax.inference.pipeline import Pipeline


class StableDiffusion(Pipeline):
    """A `Pipeline` of images of one size, and those of other sizes by `at_size`."""

    def __init__(
        self,
        *,
        of_size: Callable[[tuple[int, int]], StableDiffusion],
        of_lora: Callable[[Any, float], StableDiffusion],
        **parts: Any,
    ) -> None:
        """Takes the parts that `experiment.stable_diffusion` resolves.

        Args:
          of_size: (height, width) -> the pipeline of images of that size, with the same parameters.
          of_lora: (LoRA files, scale) -> the pipeline with them.
          **parts: as for `Pipeline`.
        """
        super().__init__(**parts)
        self._of_size, self._of_lora = of_size, of_lora

    def with_params(
        self,
        params: Any,
        of_size: Callable[[tuple[int, int]], StableDiffusion],
    ) -> StableDiffusion:
        """The pipeline with other parameters of the network; it shares what is compiled.

        Args:
          params: of the same structure and types.
          of_size: see above; with these parameters.
        """
        made = copy.copy(self)
        made.params, made._of_size = params, of_size
        return made

    def with_lora(self, lora: Any, *, scale: float = 1.0) -> StableDiffusion:
        """The pipeline with low-rank adapters (Hu et al. 2021), merged into what was loaded.

            model.with_lora("style.safetensors", scale=0.8).sample(prompts)

        They replace those of an earlier call: `model.with_lora(file, scale=0.5)` is the same for a
        `model` that has this file with another scale already. Adapters that were given to
        `diffjax.load` stay. Nothing is compiled again, unless they change a text encoder.

        Args:
          lora: a path, a pair (path, scale), or several of these in a list; [] for none. Files of
            kohya's and diffusers' names, for the U-Net and text encoders.
          scale: factor of all of them.

        Raises:
          UserError: a file that can't be read, of other adapters or for another model.
        """
        made = self._of_lora(lora, arguments.number("scale", scale))
        return made.at_size(*self.space.image_shape[:2])

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
