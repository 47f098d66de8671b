"""`diffjax.load` of a folder that diffusers wrote: Stable Diffusion with diffjax's sampling."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffjax import accelerator, arguments
from diffjax.errors import UserError
from diffjax.experiment import defaults
from diffjax.experiment.load import generator_of, task_of
from diffjax.experiment.model import Model
from diffjax.inference.sample_conditions import Examples
from diffjax.inference.stable_diffusion import StableDiffusion
from diffjax.stable_diffusion.folder import Folder, load_folder
from diffjax.stable_diffusion.tokenizer import Prompts

# Arguments of `load` that `diffjax.load` passes on.
SETTINGS = ("variant", "tile", "control", "long_prompts", "prompt_weights")
STEPS = 50
# The scales of diffusers' pipelines.
SCALE, XL_SCALE = 7.5, 5.0


def load(
    path: str | Path,
    *,
    dtype: str = "float32",
    variant: str | None = None,
    tile: int = 0,
    control: str | Path | Sequence[str | Path] = (),
    long_prompts: str = "cut",
    prompt_weights: str = "none",
) -> StableDiffusion:
    """Reads a folder; see `stable_diffusion.folder.load_folder`.

    Args:
      path, dtype, variant, tile: as for `load_folder`.
      control: folder of a ControlNet, or several, whose results are summed.
      long_prompts, prompt_weights: `long` and `weights` of `stable_diffusion.tokenizer.Prompts`.

    Raises:
      UserError: as `load_folder`, or a ControlNet that can't be read or is of another family.
    """
    prompts = Prompts(long_prompts, prompt_weights).check()
    tile = arguments.whole("tile", tile)
    folder = load_folder(path, dtype=dtype, variant=variant, tile=tile)
    folder = folder._replace(prompts=prompts).with_controls(control, variant=variant)
    made: dict[tuple[tuple[int, int], int], StableDiffusion] = {}

    def of_size(size: tuple[int, int], chunks: int = 1) -> StableDiffusion:
        if (size, chunks) not in made:
            model = model_of(folder, size, chunks=chunks)
            made[size, chunks] = StableDiffusion(
                of_size=of_size,
                chunks_of=folder.chunks,
                chunks=chunks,
                controls=len(folder.controls),
                params=folder.network_params,
                step=0,
                about=model.about,
                space=model.space,
                diffusion=model.diffusion,
                make_generator=lambda how: generator_of(model, how, model.examples),
                make_task=task_of,
            )
        return made[size, chunks]

    return of_size(folder.size)


def model_of(folder: Folder, size: tuple[int, int], *, chunks: int = 1) -> Model:
    """The model for images of a height and width, with the folder's settings of sampling.

    Args:
      folder: the folder.
      size: (height, width).
      chunks: in which prompts are encoded.

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
        conditions=folder.conditions(size, chunks=chunks),
        network=folder.network,
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
