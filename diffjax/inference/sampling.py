"""How a model is sampled, as functions: a sampler, its grid, guidance and thresholding."""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffjax import denoisers, grids
from diffjax.models.network import Network
from diffjax.prediction import Prediction
from diffjax.sampling import guidance, samplers
from diffjax.schedules import Schedule


class GuidanceModel(NamedTuple):
    """What guidance is made of.

    Attributes:
      denoise: the model.
      schedule: its schedule.
      conditional: whether it has a condition to leave out.
      num_classes: 0 for one without classes.
      null: condition -> the same tree that stands for none, or for the negative prompt.
      network: the network, for guidance that changes it.
      shape: of one x_0.
      denoiser_of: a network -> the denoiser that it makes with the same parameters.
      weak: a weaker model, where the config names one.
    """

    denoise: denoisers.Denoiser
    schedule: Schedule
    conditional: bool
    num_classes: int
    null: guidance.Null
    network: Network
    shape: tuple[int, ...]
    denoiser_of: Callable[[Network], denoisers.Denoiser]
    weak: denoisers.Denoiser | None


Guide = Callable[[GuidanceModel], denoisers.Denoiser]


class Weak(NamedTuple):
    """The weaker model of autoguidance: a network, what it predicts, and its parameters."""

    network: Network
    diffusion: Prediction
    params: Any


class Sampling(NamedTuple):
    """What a config's `sample` section says, as functions.

    Attributes:
      sampler, grid: see `samplers` and `grids`.
      guide: model -> guided denoiser.
      threshold: (denoiser, schedule) -> denoiser.
      guidance: what the config calls the guidance, for messages.
      uses_labels: whether the guidance looks at a sample's label; `compose` names its own.
      uses_null: whether it compares with no condition, or a negative prompt in its place.
    """

    sampler: Callable[..., samplers.Samples]
    grid: grids.Grid
    guide: Guide
    threshold: Callable[[denoisers.Denoiser, Schedule], denoisers.Denoiser]
    guidance: str = "none"
    uses_labels: bool = True
    uses_null: bool = False


def apply_network(network: Network, params: Any) -> denoisers.Network:
    """The network with fixed parameters, (x, time, cond) -> output."""
    return lambda x, t, cond: network.apply(params, x, t, cond)
