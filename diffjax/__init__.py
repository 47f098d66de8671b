"""diffjax: diffusion models as pure functions in JAX.

`import diffjax as dj` brings the functional core, which needs jax and numpy alone. Networks, data,
training and evaluation are imported by name: `from diffjax.models import UNet`.
"""

from diffjax import (
    autoencoding,
    categorical,
    denoisers,
    editing,
    ema,
    grids,
    guidance,
    importance_sampling,
    inverse_problems,
    learned_schedules,
    learned_variance,
    learned_weighting,
    likelihood,
    losses,
    offset_noise,
    parametrisations,
    posthoc_ema,
    process,
    rng,
    samplers,
    schedules,
    self_conditioning,
    thresholding,
    time_sampling,
    weightings,
)
from diffjax._version import __version__
from diffjax.denoisers import denoiser, edm_denoiser
from diffjax.errors import UserError
from diffjax.losses import diffusion_loss
from diffjax.parametrisations import Estimates, convert
from diffjax.process import q_posterior, q_sample, q_step
from diffjax.samplers import Samples
from diffjax.schedules import Scales
from diffjax.thresholding import clip_x0, dynamic_threshold

__all__ = [
    "Estimates",
    "Samples",
    "Scales",
    "UserError",
    "__version__",
    "autoencoding",
    "categorical",
    "clip_x0",
    "convert",
    "denoiser",
    "denoisers",
    "diffusion_loss",
    "dynamic_threshold",
    "editing",
    "edm_denoiser",
    "ema",
    "grids",
    "guidance",
    "importance_sampling",
    "inverse_problems",
    "learned_schedules",
    "learned_variance",
    "learned_weighting",
    "likelihood",
    "losses",
    "offset_noise",
    "parametrisations",
    "posthoc_ema",
    "process",
    "q_posterior",
    "q_sample",
    "q_step",
    "rng",
    "samplers",
    "schedules",
    "self_conditioning",
    "thresholding",
    "time_sampling",
    "weightings",
]
