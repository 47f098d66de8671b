"""`diffjax.load` of a folder that diffusers wrote: Stable Diffusion with diffjax's sampling."""

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
from diffjax.stable_diffusion.folder import Folder, load_folder

STEPS = 50
# The scales of diffusers' pipelines.
SCALE, XL_SCALE = 7.5, 5.0


def load(path: str | Path, **how: Any) -> StableDiffusion:
    """Reads a folder or a file, with the arguments of `stable_diffusion.folder.load_folder`.

    Raises:
      UserError: as `load_folder`.
    """
    folder = load_folder(path, **how)
    made: dict[tuple[int, int], StableDiffusion] = {}

    def of_size(size: tuple[int, int]) -> StableDiffusion:
        if size not in made:
            model = model_of(folder, size)
            made[size] = StableDiffusion(
                of_size=of_size,
                params=folder.params,
                step=0,
                about=model.about,
                space=model.space,
                diffusion=model.diffusion,
                make_generator=lambda how: generator_of(model, how, model.examples),
                make_task=task_of,
            )
        return made[size]

    return of_size(folder.size)


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
