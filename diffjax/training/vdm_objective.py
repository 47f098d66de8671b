"""The continuous-time variational bound as an objective, with an optionally learned schedule.

Kingma et al. 2021, Variational diffusion models.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.denoisers import predict
from diffjax.likelihood import bits, vdm
from diffjax.losses import learned_schedules
from diffjax.losses.learned_schedules import LearnedSchedule
from diffjax.losses.time_sampling import TimeSampler
from diffjax.models.network import Network
from diffjax.prediction import Prediction
from diffjax.process import q_sample, scales_like
from diffjax.schedules import ContinuousSchedule, variance_preserving
from diffjax.training.denoising_objective import in_evaluation, in_training, normal_noise
from diffjax.training.objective import LossAndGrads, LossInputs, ObjectiveState
from diffjax.types import Array

# The schedule parametrised by the log-SNR: t = log-SNR.
BY_LOG_SNR = ContinuousSchedule(
    lambda t: t, lambda log_snr: log_snr, variance_preserving, t_min=-math.inf, T=math.inf
)


class VdmObjective(NamedTuple):
    """The continuous-time bound in bits per dimension.

    Attributes:
      network: the network trained.
      prediction: its schedule is the config's, continuous and variance preserving; the learned one
        starts with the same ends. Its time input is a function of the log-SNR.
      form: log-SNR as a function of t.
      learn_ends: whether the ends are learned. If so, prior and reconstruction terms enter the
        training loss; with fixed ends they are constants, and are omitted.
      sample_times: distribution of the times of a batch.
    """

    network: Network
    prediction: Prediction
    form: LearnedSchedule
    learn_ends: bool
    sample_times: TimeSampler

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The parameters of the schedule."""
        return ObjectiveState(self.form.init(jax.random.fold_in(key, 1)), None)

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The bound; the schedule is trained to lower the variance of its estimate."""
        t = self._times(inputs)
        eps = normal_noise(inputs)

        def loss(params: Any, log_snr: Array, slope: Array) -> tuple[Array, None]:
            x_0_hat = self._estimate(params, inputs, eps, log_snr)
            each = vdm.diffusion_term(inputs.x_0, x_0_hat, log_snr=log_snr, fall=slope)
            return bits.bits_per_dim(each, dimensions=1), None

        (diffusion, _), (grads, schedule_grads) = learned_schedules.value_and_grad(
            loss, params, form=self.form, schedule_params=state.params, t=t
        )
        if self.learn_ends:
            ends, ends_grads = jax.value_and_grad(self._prior_and_reconstruction)(
                state.params, inputs
            )
            of_ends = jax.tree.map(jnp.add, schedule_grads["ends"], ends_grads["ends"])
        else:
            ends = jnp.zeros(())
            of_ends = jax.tree.map(jnp.zeros_like, schedule_grads["ends"])
        return LossAndGrads(diffusion + ends, grads, {**schedule_grads, "ends": of_ends}, None)

    def held_out(self, params: Any, inputs: LossInputs) -> Array:
        """(B,) bounds, with the config's schedule."""
        t = self._times(inputs)
        eps = normal_noise(inputs)
        denoise = self.prediction.denoiser(in_evaluation(self.network, params))
        bound = vdm.vdm_bound(
            denoise, inputs.x_0, schedule=self.prediction.schedule,
            t=t, eps=eps, eps_0=eps[::-1], cond=inputs.cond,
        )  # fmt: skip
        return bound.total

    def _times(self, inputs: LossInputs) -> Array:
        return self.sample_times(
            inputs.key("time"),
            self.prediction.schedule,
            indices=inputs.indices,
            batch_size=inputs.batch_size,
        )

    def _estimate(self, params: Any, inputs: LossInputs, eps: Array, log_snr: Array) -> Array:
        x_t = q_sample(BY_LOG_SNR, inputs.x_0, t=log_snr, eps=eps)
        _, parametrisation, time_input = self.prediction[:3]
        output, scales = predict(
            in_training(self.network, params, inputs), x_t, t=log_snr, cond=inputs.cond,
            schedule=BY_LOG_SNR, parametrisation=parametrisation, time_input=time_input,
        )  # fmt: skip
        return parametrisation.estimates(output, x_t, scales).x_0

    def _prior_and_reconstruction(self, schedule_params: Any, inputs: LossInputs) -> Array:
        """The two terms that depend on the schedule's ends alone."""
        first, last = (self.form.log_snr(schedule_params, jnp.full((), t)) for t in (0.0, 1.0))
        x_0 = inputs.x_0
        start = scales_like(BY_LOG_SNR, first, x_0)
        eps = normal_noise(inputs, stream="reconstruction")
        noisy = start.signal_scale * x_0 + start.noise_scale * eps
        reconstruction = -vdm.level_decoder(start)(x_0, noisy).mean()
        prior = vdm.prior_term(x_0, last).mean()
        return bits.bits_per_dim(prior + reconstruction, dimensions=1)
