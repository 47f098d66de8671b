"""`diffjax.load` of a folder that diffusers wrote: Stable Diffusion with diffjax's sampling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffjax.experiment import defaults
from diffjax.experiment.load import generator_of, task_of
from diffjax.experiment.model import Model, of_folder
from diffjax.experiment.model_folder import SCALE, XL_SCALE
from diffjax.inference.stable_diffusion import StableDiffusion
from diffjax.stable_diffusion.folder import Folder, load_folder

STEPS = 50


def load(
    path: str | Path, *, dtype: str = "float32", variant: str | None = None
) -> StableDiffusion:
    """Reads a folder; see `stable_diffusion.folder.load_folder`.

    Raises:
      UserError: as `load_folder`.
    """
    folder = load_folder(path, dtype=dtype, variant=variant)
    return pipeline(lambda size: model_of(folder, size), folder.params, step=0, size=folder.size)


def pipeline(
    of_size: Callable[[tuple[int, int]], Model], params: Any, *, step: int, size: tuple[int, int]
) -> StableDiffusion:
    """The pipeline of a folder's model, or of one that was trained from it.

    Args:
      of_size: (height, width) -> the model for images of that size.
      params: of the network.
      step: of the parameters.
      size: the first one.

    Raises:
      UserError: sides that are no multiples of the autoencoder's factor.
    """
    made: dict[tuple[int, int], StableDiffusion] = {}

    def at(size: tuple[int, int]) -> StableDiffusion:
        if size not in made:
            model = of_size(size)
            assert model.folder is not None
            made[size] = StableDiffusion(
                of_size=at,
                folder=model.folder,
                params=params,
                step=step,
                about=model.about,
                space=model.space,
                diffusion=model.diffusion,
                make_generator=lambda how: generator_of(model, how, model.examples),
                make_task=task_of,
            )
        return made[size]

    return at(size)


def model_of(folder: Folder, size: tuple[int, int]) -> Model:
    """The model for images of a height and width, with the folder's settings of sampling.

    Raises:
      UserError: sides that are no multiples of the autoencoder's factor.
    """
    config = _config(folder)
    model = of_folder(config, folder.about(size), folder)
    return model._replace(diffusion=folder.scheduler.prediction)


def _config(folder: Folder) -> Any:
    """A config whose `sample` section is the folder's."""
    config = defaults.diffusion()
    config.data.name = folder.name
    config.model.update(name="diffjax.models.stable_diffusion:StableDiffusionUNet")
    scheduler = folder.scheduler
    scale = XL_SCALE if folder.unet.module.pooled_width else SCALE
    config.sample.sampler, config.sample.grid = scheduler.sampler, scheduler.grid
    config.sample.threshold, config.sample.steps = scheduler.threshold, STEPS
    config.sample.guidance = f"classifier_free(scale={scale})"
    config.sample.batch_size = 4
    return config
