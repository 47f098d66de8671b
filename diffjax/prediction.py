"""What a network predicts, and the denoiser that follows from it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from diffjax import denoisers, flow_maps, self_conditioning
from diffjax.denoisers import Denoiser, NetworkFn, TimeInput, scaled_time
from diffjax.flow_maps import FlowMap
from diffjax.parametrisations import Parametrisation
from diffjax.schedules import Schedule

# Self-conditioning clips the estimate of x_0 to [-X0_CLIP, X0_CLIP].
X0_CLIP = 1.0


class Prediction(NamedTuple):
    """How a network's input and output are interpreted.

    Attributes:
      schedule: the noise schedule.
      parametrisation: the predicted quantity.
      time_input: the input of the time embedding.
      learned_variance: whether the output also contains a variance (twice the channels).
      self_conditioned: whether the input also contains the network's own estimate of x_0.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> prediction = dj.Prediction(dj.schedules.cosine(), dj.parametrisations.v)
    >>> denoise = prediction.denoiser(lambda x, time_input, cond: jnp.zeros_like(x))
    >>> pair = denoise(jnp.ones((1, 2)), 1000)
    >>> print(prediction.output_shape((28, 28, 1)), pair.eps.round(2))  # at t = T x_t is all noise
    (28, 28, 1) [[1. 1.]]
    """

    schedule: Schedule
    parametrisation: Parametrisation
    time_input: TimeInput = scaled_time
    learned_variance: bool = False
    self_conditioned: bool = False

    @property
    def outputs(self) -> int:
        """Output channels per channel of x_0."""
        return self.parametrisation.outputs * (2 if self.learned_variance else 1)

    def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the network's input, (..., C) or (..., 2C), for x_0 of `shape`, (..., C)."""
        return (*shape[:-1], shape[-1] * (2 if self.self_conditioned else 1))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the network's output for x_0 of `shape`."""
        return (*shape[:-1], shape[-1] * self.outputs)

    def time_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the network's time input: (B,), or (B, 2) with the span of a step."""
        return (batch, 2) if self.parametrisation.spans else (batch,)

    def denoiser(self, network: NetworkFn) -> Denoiser:
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

    def flow_map(self, network: NetworkFn) -> FlowMap:
        """The flow map of a network with fixed parameters.

        That of a network of average velocities is what it was trained for; of any other, one DDIM
        step.
        """
        if self.parametrisation.spans:
            return flow_maps.average_velocity_map(
                network,
                self.schedule,
                parametrisation=self.parametrisation,
                time_input=self.time_input,
            )
        return flow_maps.ddim_map(self.denoiser(network), self.schedule)
