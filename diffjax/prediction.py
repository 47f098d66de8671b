"""What a network predicts, and how that becomes a denoiser: one value for what travels together."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from diffjax import denoisers, self_conditioning
from diffjax.denoisers import Denoiser, Network, TimeInput
from diffjax.parametrisations import Parametrisation
from diffjax.schedules import Schedule

# The largest magnitude of an estimate of x_0 that a self-conditioned network is shown.
X0_CLIP = 1.0


class Prediction(NamedTuple):
    """The meaning of a network's input and output.

    Attributes:
      schedule: the noise schedule.
      parametrisation: what the output stands for.
      time_input: what the time embedding is fed.
      learned_variance: whether the output has a variance beside its value (twice the channels).
      self_conditioned: whether the input has the network's own estimate beside x_t.
    """

    schedule: Schedule
    parametrisation: Parametrisation
    time_input: TimeInput
    learned_variance: bool = False
    self_conditioned: bool = False

    @property
    def outputs(self) -> int:
        """Channels of the output for each of x_0's."""
        return self.parametrisation.outputs * (2 if self.learned_variance else 1)

    def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the network's input, for an x_0 of a shape: (..., C) or (..., 2C)."""
        return (*shape[:-1], shape[-1] * (2 if self.self_conditioned else 1))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the network's output, for an x_0 of a shape."""
        return (*shape[:-1], shape[-1] * self.outputs)

    def denoiser(self, network: Network) -> Denoiser:
        """The denoiser of a network with fixed parameters, (x, time, cond) -> output."""
        make: Callable[..., Denoiser] = denoisers.denoiser
        if self.learned_variance:
            make = denoisers.learned_variance_denoiser
        if self.self_conditioned:
            make = partial(self_conditioning.self_conditioned, limit=X0_CLIP)
        return make(
            network,
            self.schedule,
            parametrisation=self.parametrisation,
            time_input=self.time_input,
        )
