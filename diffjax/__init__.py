"""diffjax: diffusion models as pure functions in JAX.

`import diffjax as dj` brings the functional core, which needs jax, numpy and jaxtyping alone.
Networks, data, training and evaluation are imported by name: `from diffjax.models import UNet`.
`dj.load(workdir)` reads a trained model; its imports are made when it is called.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffjax import (
    augmentation,
    categorical,
    denoisers,
    ema,
    flow_maps,
    grids,
    likelihood,
    losses,
    parametrisations,
    posthoc_ema,
    prediction,
    process,
    rng,
    schedules,
    self_conditioning,
)
from diffjax._version import __version__
from diffjax.denoisers import denoiser, edm_denoiser
from diffjax.errors import UserError
from diffjax.losses import (
    adversarial,
    autoencoding,
    consistency,
    continuous_consistency,
    diffusion_loss,
    distances,
    distribution_matching,
    importance_sampling,
    learned_schedules,
    learned_variance,
    learned_weighting,
    mean_flow,
    offset_noise,
    progressive_distillation,
    shortcut,
    time_sampling,
    weightings,
)
from diffjax.parametrisations import Estimates, convert
from diffjax.prediction import Prediction
from diffjax.process import q_posterior, q_sample, q_step
from diffjax.sampling import (
    editing,
    guidance,
    inverse_problems,
    memory,
    samplers,
    thresholding,
)
from diffjax.sampling.samplers import Samples
from diffjax.sampling.thresholding import clip_x0, dynamic_threshold
from diffjax.schedules import Scales

if TYPE_CHECKING:
    from diffjax.inference.cascade import Cascade
    from diffjax.inference.pipeline import Pipeline


def load(
    workdir: str | Path,
    *,
    checkpoint: str | int = "latest",
    first_stage: str | Path | None = None,
    dtype: str | None = None,
    **of_folder: Any,
) -> "Pipeline":
    """A trained diffusion model, to sample, edit, encode, denoise and measure likelihoods with.

    No data set, optimizer or training state is read, and no orbax is needed. See
    `inference.pipeline.Pipeline` for what it does.

    Args:
      workdir: a run's folder, what `--mode=export` wrote, or Stable Diffusion 1, 2 or XL in a
        folder as diffusers writes it, or in one .safetensors or .ckpt file of the original layout;
        see `inference.stable_diffusion.StableDiffusion`.
      checkpoint: "latest", "best", "ema" (what --mode=ema rebuilt) or a step.
      first_stage: where the first stage's workdir is now, if it was moved.
      dtype: of Stable Diffusion's weights and computation: "float32", the default, "bfloat16" or
        "float16".
      **of_folder: other settings of Stable Diffusion's folders: variant="fp16" of the weights'
        files, tile=64 for the autoencoder in tiles of 64 latents, control=FOLDER of a ControlNet or
        several, long_prompts="cut", "refuse" or "chunks", prompt_weights="none", "scale" or
        "scale_keep_mean" for "(word:1.2)"; lora, files of low-rank adapters that are merged while
        loading: FILE, (FILE, scale), or several of these in a list (`StableDiffusion.with_lora` has
        a scale that can be changed later); and for one file of the original layout, which has no
        vocabulary, tokenizer=FOLDER with CLIP's vocab.json and merges.txt, and for Stable Diffusion
        2 prediction="epsilon" or "v_prediction" (the 768 models), which it does not tell; see
        `experiment.stable_diffusion.load`.

    Raises:
      UserError: no such run, or one that can't be read.
    """
    from diffjax.experiment.load import load as load_run

    return load_run(
        workdir, checkpoint=checkpoint, first_stage=first_stage, dtype=dtype, **of_folder
    )


def cascade(
    stages: "Sequence[str | Path | Pipeline]",
    *,
    settings: Sequence[Mapping[str, Any]] = (),
    negative_prompt: str = "",
) -> "Cascade":
    """A base model and the upsamplers after it, to sample with (Ho et al. 2021).

    See `inference.cascade.Cascade` for what it does.

    Args:
      stages: of the base model, then of each upsampler: a workdir, or what `load` returned.
      settings: of each stage, which override its run's `sample` section, such as
        {"steps": 20, "augmentation_level": 0.1}, and for a workdir its "checkpoint"; () for none.
      negative_prompt: for the stages that take a text and whose guidance uses it.

    Raises:
      UserError: a folder without a run, or stages that do not fit.
    """
    from diffjax.experiment.load import load_cascade

    return load_cascade(stages, settings=settings, negative_prompt=negative_prompt)


__all__ = [
    "Estimates",
    "Prediction",
    "Samples",
    "Scales",
    "UserError",
    "__version__",
    "adversarial",
    "augmentation",
    "autoencoding",
    "cascade",
    "categorical",
    "clip_x0",
    "consistency",
    "continuous_consistency",
    "convert",
    "denoiser",
    "denoisers",
    "diffusion_loss",
    "distances",
    "distribution_matching",
    "dynamic_threshold",
    "editing",
    "edm_denoiser",
    "ema",
    "flow_maps",
    "grids",
    "guidance",
    "importance_sampling",
    "inverse_problems",
    "learned_schedules",
    "learned_variance",
    "learned_weighting",
    "likelihood",
    "load",
    "losses",
    "mean_flow",
    "memory",
    "offset_noise",
    "parametrisations",
    "posthoc_ema",
    "prediction",
    "process",
    "progressive_distillation",
    "q_posterior",
    "q_sample",
    "q_step",
    "rng",
    "samplers",
    "schedules",
    "self_conditioning",
    "shortcut",
    "thresholding",
    "time_sampling",
    "weightings",
]
