"""The methods of `few_step_objective`, each around a loss of the core.

    mean_flow              losses.mean_flow                 average velocities, from nothing
    shortcut               losses.shortcut                  the same by self-consistency
    consistency            losses.consistency               tuning, or with a teacher distillation
    continuous_consistency losses.continuous_consistency    sCT, or with a teacher sCD

Each draws what it needs besides t and the noise, and calls the loss with views of the network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax import rng
from diffjax.denoisers import Denoiser, NetworkFn
from diffjax.flow_maps import AverageVelocity, average_velocity_of
from diffjax.losses import consistency, continuous_consistency, mean_flow, shortcut
from diffjax.losses.distances import Distance, squared_error
from diffjax.losses.time_sampling import TimeSampler
from diffjax.models import condition
from diffjax.prediction import Prediction
from diffjax.training.few_step_objective import Terms, Views
from diffjax.training.objective import LossInputs
from diffjax.types import Array


class MeanFlow(NamedTuple):
    """See `losses.mean_flow`.

    Attributes:
      prediction: of average velocities.
      sample_times: distribution of both times, of which the larger one is t.
      share: of examples with s < t; the others have s = t.
      tangent: "data" or "predicted".
      power, eps: of `mean_flow.adaptive`.
      scale, mix: of guidance.
      keep_map: whether guidance keeps the map.
    """

    prediction: Prediction
    sample_times: TimeSampler
    share: float = 0.25
    tangent: str = "data"
    power: float = 0.75
    eps: float = 1e-3
    scale: float = 1.0
    mix: float = 0.0
    keep_map: bool = False

    def __call__(
        self, views: Views, inputs: LossInputs, t: Array, eps: Array, *, held_out: bool = False
    ) -> Terms:
        """The squared error, weighted by itself; measured as a mean over dimensions."""
        other = self.sample_times(
            inputs.key("second_time"),
            self.prediction.schedule,
            indices=inputs.indices,
            batch_size=inputs.batch_size,
        )
        apart = rng.per_example(
            inputs.key("time_pair"), inputs.indices, lambda k: jax.random.bernoulli(k, self.share)
        )
        later = jnp.maximum(t, other)
        earlier = jnp.where(apart, jnp.minimum(t, other), later)
        velocity = self._velocity(views, held=False)
        target = None
        if inputs.cond is not None and (self.scale, self.mix) != (1.0, 0.0):
            null = condition.null(inputs.cond, keep_map=self.keep_map)
            target = mean_flow.guided_velocity(
                self._velocity(views, held=True), inputs.x_0, t=later, eps=eps,
                cond=inputs.cond, null=null,
                guided=~condition.is_null(inputs.cond, keep_map=self.keep_map),
                scale=self.scale, mix=self.mix,
            )  # fmt: skip
        error = mean_flow.mean_flow_error(
            velocity, inputs.x_0, t=later, s=earlier, eps=eps, cond=inputs.cond,
            target=target, tangent=self.tangent,
        )  # fmt: skip
        squared = squared_error(error, jnp.zeros_like(error))
        trained = mean_flow.adaptive(squared, power=self.power, eps=self.eps)
        return Terms(trained, squared / error[0].size)

    def _velocity(self, views: Views, *, held: bool) -> AverageVelocity:
        return _average_velocity(self.prediction, views.held if held else views.student)


def _average_velocity(prediction: Prediction, network: NetworkFn) -> AverageVelocity:
    schedule, parametrisation, time_input = prediction[:3]
    return average_velocity_of(
        network, schedule, parametrisation=parametrisation, time_input=time_input
    )


class Shortcut(NamedTuple):
    """See `losses.shortcut`.

    Attributes:
      prediction: of average velocities.
      share: of examples with a step size above 0.
      levels: of step sizes 1, 1/2, 1/4 ...
    """

    prediction: Prediction
    share: float = 0.25
    levels: int = 7

    def __call__(
        self, views: Views, inputs: LossInputs, t: Array, eps: Array, *, held_out: bool = False
    ) -> Terms:
        """The mean squared error."""
        u = rng.per_example(inputs.key("step_size"), inputs.indices, jax.random.uniform)
        d = shortcut.step_sizes(u / self.share, levels=self.levels)
        large = u < self.share
        # The times of a sampler with steps of size d.
        t = jnp.where(large, d * jnp.ceil(t / d), t)
        student, averaged = (
            _average_velocity(self.prediction, network)
            for network in (views.student, views.averaged)
        )
        error = shortcut.shortcut_error(
            student, inputs.x_0, t=t, d=jnp.where(large, d, 0.0), eps=eps, cond=inputs.cond,
            target=averaged,
        )  # fmt: skip
        each = squared_error(error, jnp.zeros_like(error)) / error[0].size
        return Terms(each, each)


class Consistency(NamedTuple):
    """See `losses.consistency`.

    Attributes:
      prediction: of the student.
      distance: between the estimates of x_0.
      stage_steps: train steps of a stage.
      stages: number of stages.
      q, k, b: of `consistency.nearer_time`.
      anchor: the noise of `consistency.anchored`; 0 for none.
    """

    prediction: Prediction
    distance: Distance
    stage_steps: int
    stages: int
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    anchor: float = 0.0

    def __call__(
        self, views: Views, inputs: LossInputs, t: Array, eps: Array, *, held_out: bool = False
    ) -> Terms:
        """The weighted distance; on held-out examples, that of the last stage."""
        last = self.stages - 1
        stage = jnp.int32(last) if held_out else jnp.minimum(inputs.step // self.stage_steps, last)
        s = consistency.nearer_time(
            self.prediction.schedule, t, stage=stage, q=self.q, k=self.k, b=self.b
        )
        student, held = map(self._function, (views.student, views.held))
        each = consistency.consistency_loss(
            student, inputs.x_0, target=held, schedule=self.prediction.schedule, t=t, s=s,
             eps=eps, distance=self.distance, cond=inputs.cond, teacher=views.teacher,
        )  # fmt: skip
        return Terms(each, each)

    def _function(self, network: NetworkFn) -> Denoiser:
        denoise = self.prediction.denoiser(network)
        if not self.anchor:
            return denoise
        return consistency.anchored(denoise, self.prediction.schedule, noise=self.anchor)


class ContinuousConsistency(NamedTuple):
    """See `losses.continuous_consistency`.

    Attributes:
      prediction: of the student.
      sigma_data: the data's standard deviation.
      warm_up_steps: train steps in which the unstable part of the tangent comes in.
      normalise: whether the tangent is normalised.
    """

    prediction: Prediction
    sigma_data: float = 0.5
    warm_up_steps: int = 10_000
    normalise: bool = True

    def __call__(
        self, views: Views, inputs: LossInputs, t: Array, eps: Array, *, held_out: bool = False
    ) -> Terms:
        """The squared distance to the tangent's goal, with the prior weight."""
        schedule = self.prediction.schedule
        student, target = (
            continuous_consistency.trig_network(
                self.prediction.denoiser(network), schedule, sigma_data=self.sigma_data
            )
            for network in (views.student, views.held)
        )
        teacher = None
        if views.teacher is not None:
            teacher = continuous_consistency.trig_network(
                views.teacher, schedule, sigma_data=self.sigma_data
            )
        done = 1.0 if held_out else jnp.minimum(inputs.step / max(self.warm_up_steps, 1), 1.0)
        each = continuous_consistency.continuous_consistency_loss(
            student, inputs.x_0, eps=eps, sigma_data=self.sigma_data,
            a=continuous_consistency.angle(schedule, t, sigma_data=self.sigma_data),
            target=target, teacher=teacher, warm_up=done, cond=inputs.cond,
            normalise=self.normalise,
        )  # fmt: skip
        return Terms(each, each)
