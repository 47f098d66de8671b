"""Sampling settings as functions: a sampler, its grid, guidance and thresholding."""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffjax import denoisers, grids
from diffjax.models.network import Network
from diffjax.prediction import Prediction
from diffjax.sampling import guidance, samplers
from diffjax.schedules import Schedule


class GuidanceModel(NamedTuple):
    """The inputs of guidance.

    Attributes:
      denoise: the model.
      schedule: its schedule.
      conditional: whether it has a condition that guidance can leave out.
      num_classes: 0 for a model without classes.
      null: condition -> the null condition of the same structure, or the negative prompt.
      network: the network, for guidance that changes it.
      shape: of one x_0.
      denoiser_of: a network -> its denoiser with the same parameters.
      weak: a weaker model, if the config sets one.
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


class OtherModel(NamedTuple):
    """Another model with its parameters: the weaker one of autoguidance, or a teacher."""

    network: Network
    diffusion: Prediction
    params: Any


class Sampling(NamedTuple):
    """A config's `sample` section, as functions.

    Attributes:
      sampler, grid: see `samplers` and `grids`.
      guide: model -> guided denoiser.
      threshold: (denoiser, schedule) -> denoiser.
      guidance: the config's text of the guidance, for messages.
      uses_labels: whether the guidance depends on a sample's label; `compose` has its own labels.
      uses_null: whether it uses the null condition, or a negative prompt in its place.
      jumps: whether the sampler takes a flow map instead of a denoiser.
    """

    sampler: Callable[..., samplers.Samples]
    grid: grids.Grid
    guide: Guide
    threshold: Callable[[denoisers.Denoiser, Schedule], denoisers.Denoiser]
    guidance: str = "none"
    uses_labels: bool = True
    uses_null: bool = False
    jumps: bool = False


def apply_network(network: Network, params: Any) -> denoisers.NetworkFn:
    """The network with fixed parameters, (x, time, cond) -> output."""
    return lambda x, t, cond: network.apply(params, x, t, cond)
