"""`diffjax.load` of a folder that diffusers wrote: Stable Diffusion with diffjax's sampling."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.experiment import defaults
from diffjax.experiment.load import generator_of, task_of
from diffjax.experiment.model import Model, of_folder
from diffjax.experiment.model_folder import SCALE, XL_SCALE
from diffjax.inference.stable_diffusion import StableDiffusion
from diffjax.stable_diffusion import learned_tokens, lora_files
from diffjax.stable_diffusion.folder import Folder, load_folder
from diffjax.stable_diffusion.tokenizer import Prompts

Size = tuple[int, int]

# Arguments of `load` that `diffjax.load` passes on.
SETTINGS = (
    "variant", "tile", "control", "image_adapter", "image_encoder", "long_prompts",
    "prompt_weights", "lora", "tokens", "tokenizer", "prediction",
)  # fmt: skip
STEPS = 50


def load(
    path: str | Path,
    *,
    dtype: str = "float32",
    variant: str | None = None,
    tile: int = 0,
    tokenizer: str | Path | None = None,
    prediction: str | None = None,
    lora: Any = None,
    control: str | Path | Sequence[str | Path] = (),
    image_adapter: str | Path | None = None,
    image_encoder: str | Path | None = None,
    tokens: learned_tokens.Files = (),
    long_prompts: str = "cut",
    prompt_weights: str = "none",
) -> StableDiffusion:
    """Reads a folder or a file.

    Args:
      path, dtype, variant, tile, tokenizer, prediction: as for `load_folder`.
      lora: files of adapters, see `lora_files.opened`; None for none.
      control: folder of a ControlNet, or several, whose results are summed.
      image_adapter, image_encoder: file of an IP-Adapter and the folder of its image encoder, see
        `stable_diffusion.image_adapter.load`.
      tokens: file of a learned token, or several, see `learned_tokens.opened`.
      long_prompts, prompt_weights: `long` and `weights` of `stable_diffusion.tokenizer.Prompts`.

    Raises:
      UserError: as `load_folder` and `lora_files.opened`, a ControlNet that can't be read or is of
        another family, or float16 on a CPU.
    """
    if dtype == "float16" and jax.default_backend() == "cpu":
        raise UserError(
            "dtype is 'float16', in which CPUs compute no attention: use 'float32' or 'bfloat16'"
        )
    prompts = Prompts(long_prompts, prompt_weights).check()
    files = lora_files.opened([] if lora is None else lora)
    # Nothing else refers to the folder while they are merged.
    folder = lora_files.merged(
        load_folder(
            path, dtype=dtype, variant=variant, tile=arguments.whole("tile", tile),
            tokenizer=tokenizer, prediction=prediction,
        ),
        files,
    )  # fmt: skip
    folder = learned_tokens.with_tokens(folder, learned_tokens.opened(tokens, folder))
    folder = folder.with_image_adapter(image_adapter, image_encoder)
    folder = folder._replace(prompts=prompts).with_controls(control, variant=variant)
    return pipeline(model_of, folder)


def pipeline(
    model_of: Callable[[Folder, Size], Model],
    folder: Folder,
    *,
    step: int = 0,
    size: Size | None = None,
) -> StableDiffusion:
    """The pipeline of a folder's model, or of one that was trained from it.

    Args:
      model_of: (folder, (height, width)) -> the model for images of that size.
      folder: with the parameters.
      step: of the parameters.
      size: of the images; by default the folder's.

    Raises:
      UserError: sides that are no multiples of the autoencoder's factor.
    """
    made: dict[tuple[Any, ...], StableDiffusion] = {}

    def of(folder: Folder, size: Size) -> StableDiffusion:
        # A pipeline's programs take the U-Net's parameters, and contain the text encoders'. It
        # refers to these, so that no others have their id.
        key = (size, folder.chunks, *(id(part.params) for part in folder.texts))
        if key not in made:
            model = model_of(folder, size)
            made[key] = StableDiffusion(
                folder=folder,
                of=of,
                step=step,
                about=model.about,
                space=model.space,
                diffusion=model.diffusion,
                make_generator=lambda how: generator_of(model, how, model.examples),
                make_task=task_of,
            )
        return made[key].with_folder(folder)

    return of(folder, size or folder.size)


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
