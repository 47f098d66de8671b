"""`diffjax.load` of a folder that diffusers wrote: Stable Diffusion with diffjax's sampling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffjax import accelerator
from diffjax.errors import UserError
from diffjax.experiment import defaults
from diffjax.experiment.load import generator_of, task_of
from diffjax.experiment.model import Model
from diffjax.inference.sample_conditions import Examples
from diffjax.inference.stable_diffusion import StableDiffusion
from diffjax.stable_diffusion import lora_files
from diffjax.stable_diffusion.folder import Folder, load_folder

Size = tuple[int, int]
OfSize = Callable[[Size], StableDiffusion]

STEPS = 50
# The scales of diffusers' pipelines.
SCALE, XL_SCALE = 7.5, 5.0


def load(path: str | Path, *, lora: Any = None, **how: Any) -> StableDiffusion:
    """Reads a folder or a file.

    Args:
      path: of it.
      lora: files of adapters, see `lora_files.opened`; None for none.
      **how: as for `stable_diffusion.folder.load_folder`.

    Raises:
      UserError: as `load_folder` and `lora_files.opened`.
    """
    files = lora_files.opened([] if lora is None else lora)
    # Nothing else refers to the folder while they are merged.
    folder = lora_files.merged(load_folder(path, **how), files)
    return pipeline(folder)


def pipeline(folder: Folder) -> StableDiffusion:
    """The pipeline of a folder."""

    def of_lora(lora: Any, scale: float) -> StableDiffusion:
        files = lora_files.opened(lora, scale=scale)
        changed = lora_files.merged(folder, files)
        pairs = zip(changed.texts, folder.texts, strict=True)
        if all(new.params is old.params for new, old in pairs):
            return _sized(lambda size, of: own(size).with_params(changed.params, of))(folder.size)
        return _sized(lambda size, of: _pipeline(changed, size, of, of_lora))(folder.size)

    own = _sized(lambda size, of: _pipeline(folder, size, of, of_lora))
    return own(folder.size)


def _sized(make: Callable[[Size, OfSize], StableDiffusion]) -> OfSize:
    """A function that makes the pipeline of a size once."""
    made: dict[Size, StableDiffusion] = {}

    def of_size(size: Size) -> StableDiffusion:
        if size not in made:
            made[size] = make(size, of_size)
        return made[size]

    return of_size


def _pipeline(
    folder: Folder, size: Size, of_size: OfSize, of_lora: Callable[[Any, float], StableDiffusion]
) -> StableDiffusion:
    model = model_of(folder, size)
    return StableDiffusion(
        of_size=of_size,
        of_lora=of_lora,
        params=folder.params,
        step=0,
        about=model.about,
        space=model.space,
        diffusion=model.diffusion,
        make_generator=lambda how: generator_of(model, how, model.examples),
        make_task=task_of,
    )


def model_of(folder: Folder, size: tuple[int, int]) -> Model:
    """The model for images of a height and width, with the folder's settings of sampling.

    Raises:
      UserError: sides that are no multiples of the autoencoder's factor.
    """
    space = folder.space(size)
    blank = np.zeros((1, *space.image_shape), np.uint8)

    def examples() -> Examples:
        """For inpainting, images of which nothing is known."""
        if not space.inpaints:
            raise UserError("nothing to condition on: give prompts")
        return Examples((), blank, np.array([-1], np.int32))

    return Model(
        config=_config(folder),
        about=folder.about(size),
        kernels=accelerator.xla(),
        space=space,
        conditions=folder.conditions(size),
        network=folder.unet.network,
        diffusion=folder.scheduler.prediction,
        weak=None,
        examples=examples,
    )


def _config(folder: Folder) -> Any:
    """A config whose `sample` section is the folder's."""
    config = defaults.diffusion()
    config.data.name = folder.name
    config.model.name = "diffjax.models.stable_diffusion:StableDiffusionUNet"
    scheduler = folder.scheduler
    scale = XL_SCALE if folder.unet.module.pooled_width else SCALE
    config.sample.sampler, config.sample.grid = scheduler.sampler, scheduler.grid
    config.sample.threshold, config.sample.steps = scheduler.threshold, STEPS
    config.sample.guidance = f"classifier_free(scale={scale})"
    config.sample.batch_size = 4
    return config
