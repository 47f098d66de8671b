"""Objectives of few-step models: a network is compared with itself, or with a teacher.

`FewStepObjective` is one train step for all methods of `few_step_methods`. What they compare are
views of the same network: with and without gradients, of the moving average, and the teacher's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from diffjax.denoisers import Denoiser, NetworkFn
from diffjax.losses import learned_weighting
from diffjax.losses.time_sampling import TimeSampler
from diffjax.models.network import Network
from diffjax.prediction import Prediction
from diffjax.training.denoising_objective import in_evaluation, in_training, normal_noise
from diffjax.training.objective import LossAndGrads, LossInputs, ObjectiveState
from diffjax.types import Array


class Teacher(NamedTuple):
    """A trained model; its parameters are `ObjectiveState.frozen`.

    Attributes:
      network, prediction: the model.
      guide: denoiser -> the denoiser with guidance; None for none.
    """

    network: Network
    prediction: Prediction
    guide: Callable[[Denoiser], Denoiser] | None = None

    def denoiser(self, params: Any) -> Denoiser:
        """The teacher as a denoiser, in evaluation mode and with guidance."""
        denoise = self.prediction.denoiser(in_evaluation(self.network, params))
        return denoise if self.guide is None else self.guide(denoise)


class Views(NamedTuple):
    """The network as a method sees it, each a function (x, time, cond) -> output.

    Attributes:
      student: with gradients and this batch's dropout.
      held: the same parameters and dropout mask, without gradients.
      averaged: the moving average, without dropout.
      teacher: the teacher as a denoiser, or None.
    """

    student: NetworkFn
    held: NetworkFn
    averaged: NetworkFn
    teacher: Denoiser | None


class Terms(NamedTuple):
    """A method's loss of a batch.

    Attributes:
      trained: (B,) what gradients are taken of.
      measured: (B,) what is logged: without weights that follow from the error itself.
    """

    trained: Array
    measured: Array


class Method(Protocol):
    """How the views are compared; see `few_step_methods`."""

    def __call__(
        self, views: Views, inputs: LossInputs, t: Array, eps: Array, *, held_out: bool = False
    ) -> Terms:
        """The loss at times t (B,) and noise eps, of x_0's shape."""
        ...


class FewStepObjective(NamedTuple):
    """A method with its network, times and teacher.

    Attributes:
      network, prediction: the network trained, and what it predicts.
      sample_times: distribution of t.
      method: the loss.
      teacher: a trained model, or None.
      learned_weighting: whether a log-variance for each noise level is learned.
    """

    network: Network
    prediction: Prediction
    sample_times: TimeSampler
    method: Method
    teacher: Teacher | None = None
    learned_weighting: bool = False

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The parameters of the learned weighting, if used."""
        if not self.learned_weighting:
            return ObjectiveState({}, None)
        return ObjectiveState(learned_weighting.init(jax.random.fold_in(key, 1)), None)

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The mean loss of the batch and its gradients."""
        t = self._times(inputs)
        eps = normal_noise(inputs)

        def loss_fn(params: Any, weighting: Any) -> tuple[Array, Array]:
            views = Views(
                in_training(self.network, params, inputs),
                in_training(self.network, jax.lax.stop_gradient(params), inputs),
                in_evaluation(self.network, inputs.averaged),
                self.teacher and self.teacher.denoiser(state.frozen),
            )
            terms = self.method(views, inputs, t, eps)
            trained = terms.trained
            if self.learned_weighting:
                log_snr = self.prediction.schedule.log_snr(t)
                log_variance = learned_weighting.log_variance(weighting, log_snr)
                trained = learned_weighting.weighted(trained, log_variance)
            return trained.mean(), terms.measured

        (_, measured), (grads, weighting_grads) = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(params, state.params)
        return LossAndGrads(measured.mean(), grads, weighting_grads, state.history)

    def held_out(self, params: Any, inputs: LossInputs) -> Array:
        """(B,) losses without dropout and without the teacher, in the form at the end of a run."""
        network = in_evaluation(self.network, params)
        views = Views(network, network, network, None)
        t = self._times(inputs)
        return self.method(views, inputs, t, normal_noise(inputs), held_out=True).measured

    def _times(self, inputs: LossInputs) -> Array:
        return self.sample_times(
            inputs.key("time"),
            self.prediction.schedule,
            indices=inputs.indices,
            batch_size=inputs.batch_size,
        )
