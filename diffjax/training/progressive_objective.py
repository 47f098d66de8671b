"""Progressive distillation in one run: the student of a stage is the teacher of the next.

With n halvings the steps of a run are cut into n stages. In stage i the student learns to take one
DDIM step for two of the teacher's, on grids of N / 2^(i + 1) and N / 2^i even steps. The teacher is
the average of the parameters when the stage began: of the model that the run starts from
(config.train.init_from) in the first stage. It is kept as history, so a run resumes within a stage.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax import denoisers, rng
from diffjax.denoisers import Denoiser
from diffjax.losses import progressive_distillation
from diffjax.losses.weightings import Weighting
from diffjax.models.network import Network
from diffjax.parametrisations import Estimates
from diffjax.prediction import Prediction
from diffjax.process import broadcast, q_sample
from diffjax.training.denoising_objective import in_evaluation, in_training, normal_noise
from diffjax.training.objective import LossAndGrads, LossInputs, ObjectiveState
from diffjax.types import Array


class ProgressiveObjective(NamedTuple):
    """See `losses.progressive_distillation`.

    Attributes:
      network, prediction: the network trained, and what it predicts.
      weighting: of the squared error in what is predicted.
      steps: N, of the first teacher's DDIM.
      stages: number of halvings.
      stage_steps: train steps of a stage.
      guide: guidance of the first teacher; the later ones have learned it.
    """

    network: Network
    prediction: Prediction
    weighting: Weighting
    steps: int
    stages: int
    stage_steps: int
    guide: Callable[[Denoiser], Denoiser] | None = None

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The teacher's parameters as history: the model's, until the first step."""
        del key
        return ObjectiveState({}, jax.tree.map(jnp.copy, params))

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The squared error of the student's x_0 step, and the teacher of the next step."""
        stage = jnp.minimum(inputs.step // self.stage_steps, self.stages - 1)
        begins = inputs.step == stage * self.stage_steps
        teacher = jax.tree.map(
            lambda now, before: jnp.where(begins, now, before), inputs.averaged, state.history
        )
        schedule = self.prediction.schedule
        t, middle, s = self._times(inputs, stage)
        eps = normal_noise(inputs)
        x_t = q_sample(schedule, inputs.x_0, t=t, eps=eps)
        denoise = self.prediction.denoiser(in_evaluation(self.network, teacher))

        def goal_of(denoise: Denoiser) -> Estimates:
            return progressive_distillation.two_steps_in_one(
                denoise, x_t, schedule=schedule, t=t, middle=middle, s=s, cond=inputs.cond
            )

        if self.guide is None:
            goal = goal_of(denoise)
        else:
            guided = self.guide(denoise)
            goal = jax.lax.cond(stage == 0, lambda: goal_of(guided), lambda: goal_of(denoise))
        _, parametrisation, time_input = self.prediction[:3]

        def loss_fn(params: Any) -> Array:
            output, scales = denoisers.predict(
                in_training(self.network, params, inputs), x_t, t=t, cond=inputs.cond,
                schedule=schedule, parametrisation=parametrisation, time_input=time_input,
            )  # fmt: skip
            error = jnp.square(output - parametrisation.target(goal.x_0, goal.eps, scales))
            weight = broadcast(self.weighting(schedule, t, parametrisation), error)
            return jnp.mean(weight * error)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        metrics = {"student_steps": self.steps / 2.0 ** (stage + 1)}
        return LossAndGrads(loss, grads, {}, teacher, metrics)

    def _times(self, inputs: LossInputs, stage: Array) -> tuple[Array, Array, Array]:
        """(B,) times of the student's grid, the teacher's between, and the student's next."""
        count = self.steps / 2.0 ** (stage + 1)
        u = rng.per_example(inputs.key("time"), inputs.indices, jax.random.uniform)
        number = jnp.floor(u * count) + 1  # 1 .. count
        schedule = self.prediction.schedule
        t, middle, s = (schedule.T * (number - back) / count for back in (0.0, 0.5, 1.0))
        if schedule.discrete:  # as grids.trailing rounds them
            t, middle, s = (jnp.round(time).astype(jnp.int32) for time in (t, middle, s))
        return t, middle, s
