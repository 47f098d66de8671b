"""Stable Diffusion as functions of arrays, for images of any size.

import diffjax
model = diffjax.load("path/to/stable-diffusion-v1-5")
images = model.sample(["a red apple"], steps=30, guidance="classifier_free(scale=7.5)")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.inference.generator import Generator
from diffjax.inference.inputs import low_resolution_of
from diffjax.inference.pipeline import Pipeline
from diffjax.inference.sample_conditions import OPEN, ControlImages
from diffjax.parametrisations import Estimates
from diffjax.stable_diffusion import lora_files
from diffjax.stable_diffusion.folder import Folder
from diffjax.stable_diffusion.save import save, with_process
from diffjax.stable_diffusion.save_file import save_file
from diffjax.stable_diffusion.weights_writer import SHARD_BYTES
from diffjax.types import Array


class StableDiffusion(Pipeline):
    """A `Pipeline` of images of one size, and those of other sizes by `at_size`.

    With ControlNets, `sample` and `edit` take control_images and control_scale:

        control_images: uint8 (n, H, W, 3) of the result's size, repeated cyclically; of several
          ControlNets, a list with such an array for each.
        control_scale: a number, or one for each ControlNet, by which what they add is multiplied.

    and the other methods are those of `with_control`'s result. With an image adapter likewise, by
    `with_image_prompts`:

        image_prompts: uint8 (n, h, w, 3) of any size, repeated cyclically.
        image_scale: a number by which the attention to them is multiplied.
    """

    def __init__(
        self,
        *,
        folder: Folder,
        of: Callable[[Folder, tuple[int, int]], StableDiffusion],
        **parts: Any,
    ) -> None:
        """Takes the parts that `experiment.stable_diffusion` resolves.

        Args:
          folder: the networks and their parameters, and how prompts are read.
          of: (a folder of the same networks, (height, width)) -> its pipeline of images of a size.
          **parts: as for `Pipeline`, without `params`.
        """
        super().__init__(params=folder.network_params, **parts)
        self._folder, self._of = folder, of
        self._base = folder  # without the adapters of `with_lora`
        self._given = OPEN  # images of control and image prompts

    def with_folder(self, folder: Folder) -> StableDiffusion:
        """The pipeline with the parameters of another folder; it shares what is compiled.

        Args:
          folder: with the same networks, and the same text encoders.
        """
        made = copy.copy(self)
        made.params, made._folder = folder.network_params, folder
        return made

    def save(
        self, out: str | Path, *, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
    ) -> list[Path]:
        """Writes a folder that diffusers loads; see `stable_diffusion.save.save`.

        ControlNets and image adapters are not written.

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
        return save(folder, out, dtype=dtype, shard_bytes=shard_bytes)

    def save_file(self, path: str | Path, *, dtype: str | None = None) -> Path:
        """Writes one file of the original layout; see `stable_diffusion.save_file.save_file`.

        ControlNets, image adapters and learned tokens are not written.

        Args:
          path: of the file, with the suffix .safetensors.
          dtype: of the weights, "float32", "bfloat16" or "float16"; None for that of now.

        Raises:
          UserError: as `stable_diffusion.save_file.save_file`.
        """
        return save_file(with_process(self._folder, self.diffusion), path, dtype=dtype)

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
        return self if size == own else self._made(self._folder, size)

    def _made(self, folder: Folder, size: tuple[int, int]) -> StableDiffusion:
        """The pipeline of a folder and a size, that of the same model without adapters kept."""
        made = self._of(folder, size)
        made._base = self._base
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
        files = lora_files.opened(lora, scale=arguments.number("scale", scale))
        folder = lora_files.merged(self._base, files)
        height, width = self.space.image_shape[:2]
        made = self._made(folder._replace(chunks=self._folder.chunks), (height, width))
        made._given = self._given
        return made

    def with_image_prompts(self, images: Any, scale: float = 1.0) -> StableDiffusion:
        """The pipeline whose image adapter is given images; see the class.

        Args:
          images: image_prompts.
          scale: image_scale.

        Raises:
          UserError: other images, or a model without an image adapter.
        """
        adapter = self._folder.image_adapter
        if adapter is None:
            raise UserError(
                "image_prompts were passed, but the model has no image adapter: load it with "
                "diffjax.load(folder, image_adapter=..., image_encoder=...)"
            )
        found = low_resolution_of("image_prompts", images, channels=3)
        adapter = adapter.scaled(arguments.number("image_scale", scale))
        other = self.with_folder(self._folder._replace(image_adapter=adapter))
        other._given = self._given._replace(image_prompts=adapter.embeddings(found))
        return other

    def with_control(self, images: Any, scale: Any = 1.0) -> StableDiffusion:
        """The pipeline whose ControlNets are given images; see the class.

        Args:
          images: control_images, of this pipeline's size.
          scale: control_scale.

        Raises:
          UserError: other images, or a model without ControlNets.
        """
        controls = len(self._folder.controls)
        if not controls:
            raise UserError(
                "control_images were passed, but the model has no ControlNet: load it with "
                "diffjax.load(folder, control=...)"
            )
        given = _images_of(images, controls)
        height, width = self.space.image_shape[:2]
        for found in given:
            if found.shape[1:3] != (height, width):
                raise UserError(
                    f"control_images are {found.shape[1]}x{found.shape[2]}: expected the size of "
                    f"the result, {height}x{width}"
                )
        other = copy.copy(self)
        given_now = ControlImages(given, _scales_of(scale, controls))
        other._given = self._given._replace(control=given_now)
        return other

    def generator(self, **how: Any) -> Generator:
        """The generator, with overridden settings and the images that were given; see `sample`."""
        made = super().generator(**how)
        return made if self._given is OPEN else made.of(self._given)

    def sample(
        self,
        prompts: Sequence[str] = (),
        *,
        height: int | None = None,
        width: int | None = None,
        control_images: Any = None,
        control_scale: Any = 1.0,
        image_prompts: Any = None,
        image_scale: float = 1.0,
        count: int | None = None,
        **how: Any,
    ) -> np.ndarray:
        """Draws samples; see `Pipeline.sample`.

        Args:
          prompts: texts, repeated cyclically if `count` is larger.
          height, width: of the images; by default those of control_images, or else those that the
            model was trained on.
          control_images, control_scale, image_prompts, image_scale: see the class.
          count: number of samples; by default that of prompts, control_images or image_prompts, of
            which there are most.
          **how: seed and settings: sampler, grid, steps, guidance, threshold, negative_prompt,
            batch_size.

        Returns:
          uint8 (count, height, width, C).

        Raises:
          UserError: no prompts, or an invalid setting.
        """
        counted = count is not None
        if control_images is not None and (controls := len(self._folder.controls)):
            first = _images_of(control_images, controls)[0]
            if height is None and width is None:
                height, width = first.shape[1:3]
            if count is None:
                count = max(len(arguments.texts("prompts", prompts)), len(first))
        sized = self.at_size(height, width)._fitting(prompts, how)
        if control_images is not None:
            sized = sized.with_control(control_images, control_scale)
        if image_prompts is not None:
            sized = sized.with_image_prompts(image_prompts, image_scale)
            if not counted:
                number = len(low_resolution_of("image_prompts", image_prompts, channels=3))
                count = max(count or len(arguments.texts("prompts", prompts)), number)
        return Pipeline.sample(sized, prompts, count=count, **how)

    def edit(
        self,
        images: np.ndarray,
        task: str,
        *,
        prompts: Sequence[str] = (),
        control_images: Any = None,
        control_scale: Any = 1.0,
        image_prompts: Any = None,
        image_scale: float = 1.0,
        **how: Any,
    ) -> np.ndarray:
        """Edits images of any size; see `Pipeline.edit`.

        Args:
          images: uint8 (n, H, W, C), H and W multiples of the first stage's factor.
          task: "vary(strength=0.5)", "inpaint", "repaint", "invert", "interpolate".
          prompts: one for all images, or one each.
          control_images, control_scale, image_prompts, image_scale: see the class; one image for
            all, or one each.
          **how: as for `Pipeline.edit`.

        Raises:
          UserError: images or conditions that the model or the task does not support.
        """
        given = low_resolution_of("images", images, channels=self.space.image_shape[-1])
        if not prompts:
            raise UserError(f"{task} needs prompts: give one for all images, or one each")
        sized = self.at_size(*given.shape[1:3])._fitting(prompts, how)
        if control_images is not None:
            sized = sized.with_control(control_images, control_scale)
        if image_prompts is not None:
            sized = sized.with_image_prompts(image_prompts, image_scale)
        control, prompted = sized._given.control, sized._given.image_prompts
        for name, arrays in (
            ("control_images", () if control is None else control.images),
            ("image_prompts", () if prompted is None else (prompted,)),
        ):
            for found in arrays:
                if len(found) not in (1, len(given)):
                    raise UserError(
                        f"{len(found)} {name} for {len(given)} images: expected 1 or {len(given)}"
                    )
        return Pipeline.edit(sized, given, task, prompts=prompts, **how)

    def encode(self, x: np.ndarray, *, prompts: Sequence[str] = (), **how: Any) -> np.ndarray:
        """The noise of images; see `Pipeline.encode`."""
        return Pipeline.encode(self._fitting(prompts, how), x, prompts=prompts, **how)

    def decode(self, noise: np.ndarray, *, prompts: Sequence[str] = (), **how: Any) -> np.ndarray:
        """Images of the noise of `encode`; see `Pipeline.decode`."""
        return Pipeline.decode(self._fitting(prompts, how), noise, prompts=prompts, **how)

    def denoise(self, x_t: Array, t: Any, *, prompts: Sequence[str] = (), **how: Any) -> Estimates:
        """The estimates of x_0 and eps at (x_t, t); see `Pipeline.denoise`."""
        return Pipeline.denoise(self._fitting(prompts, how), x_t, t, prompts=prompts, **how)

    def _fitting(self, prompts: Any, how: dict[str, Any]) -> StableDiffusion:
        """The pipeline that encodes these prompts and the negative one in enough chunks."""
        negative = how.get("negative_prompt", "")
        texts = [*arguments.texts("prompts", prompts)]
        folder = self._folder
        chunks = folder.chunks_of([*texts, negative] if isinstance(negative, str) else texts)
        if chunks == folder.chunks:
            return self
        height, width = self.space.image_shape[:2]
        other = self._made(folder._replace(chunks=chunks), (height, width))
        other._given = self._given
        return other


def _images_of(images: Any, controls: int) -> tuple[np.ndarray, ...]:
    """uint8 (n, H, W, 3) for each ControlNet."""
    one_alone = controls == 1 and isinstance(images, np.ndarray | jax.Array)
    given = (images,) if one_alone else images
    if not isinstance(given, list | tuple) or len(given) != controls:
        what = f"{len(given)}" if isinstance(given, list | tuple) else arguments.shown(images)
        raise UserError(
            f"control_images is {what}: expected "
            + ("uint8 images (n, H, W, 3)" if controls == 1 else f"a list of {controls} arrays")
        )
    return tuple(low_resolution_of("control_images", one, channels=3) for one in given)


def _scales_of(scale: Any, controls: int) -> tuple[float, ...]:
    """A number for each ControlNet."""
    scales = tuple(scale) if isinstance(scale, list | tuple) else (scale,) * controls
    if len(scales) != controls:
        raise UserError(f"{len(scales)} numbers in control_scale for {controls} ControlNets")
    return tuple(arguments.number("control_scale", one) for one in scales)
