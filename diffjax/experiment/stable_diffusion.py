"""`diffjax.load` of a folder that diffusers wrote: Stable Diffusion with diffjax's sampling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffjax.experiment import defaults
from diffjax.experiment.load import generator_of, task_of
from diffjax.experiment.model import Model, of_folder
from diffjax.experiment.model_folder import SCALE, XL_SCALE
from diffjax.inference.stable_diffusion import StableDiffusion
from diffjax.stable_diffusion import lora_files
from diffjax.stable_diffusion.folder import Folder, load_folder

Size = tuple[int, int]
OfSize = Callable[[Size], StableDiffusion]

STEPS = 50


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
    return pipeline(folder, model_of, step=0, size=folder.size)


def pipeline(
    folder: Folder, model_of: Callable[[Folder, Size], Model], *, step: int, size: Size
) -> StableDiffusion:
    """The pipeline of a folder's model, or of one that was trained from it.

    Args:
      folder: with the parameters of the network.
      model_of: (the folder, (height, width)) -> the model for images of that size.
      step: of the parameters.
      size: the first one.

    Raises:
      UserError: sides that are no multiples of the autoencoder's factor.
    """

    def made(folder: Folder, size: Size, of_size: OfSize) -> StableDiffusion:
        model = model_of(folder, size)
        return StableDiffusion(
            of_size=of_size,
            of_lora=of_lora,
            params=folder.params,
            step=step,
            about=model.about,
            space=model.space,
            diffusion=model.diffusion,
            make_generator=lambda how: generator_of(model, how, model.examples),
            make_task=task_of,
        )

    def of_lora(lora: Any, scale: float) -> StableDiffusion:
        files = lora_files.opened(lora, scale=scale)
        changed = lora_files.merged(folder, files)
        pairs = zip(changed.texts, folder.texts, strict=True)
        if all(new.params is old.params for new, old in pairs):
            return _sized(lambda size, of: own(size).with_params(changed.params, of))(size)
        return _sized(lambda size, of: made(changed, size, of))(size)

    own = _sized(lambda size, of: made(folder, size, of))
    return own(size)


def _sized(make: Callable[[Size, OfSize], StableDiffusion]) -> OfSize:
    """A function that makes the pipeline of a size once."""
    done: dict[Size, StableDiffusion] = {}

    def of_size(size: Size) -> StableDiffusion:
        if size not in done:
            done[size] = make(size, of_size)
        return done[size]

    return of_size


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
