"""Distribution matching distillation: a generator, and the denoiser of what it generates.

The model's parameters are the generator's, the objective's those of the "fake" denoiser; both are
networks of the teacher's kind and start from the parameters of config.train.init_from. The fake one
is trained in every step, the generator in every `fake_updates`-th one (DMD2's two time scales). A
discriminator of noised images lets the generator learn from the data, too (Yin et al. 2024b,
section 4.3; there its features are the fake denoiser's, here it is a network by itself). With
several sampling steps, the generator is trained at a step drawn at random, on inputs that it made
by itself (section 4.5).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.grids import Grid
from diffjax.losses.adversarial import hinge_discriminator_loss, hinge_generator_loss
from diffjax.losses.denoising import diffusion_loss
from diffjax.losses.distribution_matching import distribution_matching_loss
from diffjax.losses.time_sampling import TimeSampler
from diffjax.models.network import Network
from diffjax.prediction import Prediction
from diffjax.process import q_sample
from diffjax.training.denoising_objective import in_evaluation, in_training, normal_noise
from diffjax.training.few_step_objective import Teacher
from diffjax.training.objective import LossAndGrads, LossInputs, ObjectiveState
from diffjax.types import Array


class DistributionMatchingObjective(NamedTuple):
    """See `losses.distribution_matching`.

    Attributes:
      network, prediction: of the generator and of the fake denoiser.
      sample_times: distribution of the noise levels at which both are compared.
      shape: of one x_0.
      teacher: the denoiser of the data; its parameters are `ObjectiveState.frozen`. None where
        nothing is trained.
      grid: of `samplers.consistency`, which the generator is trained for.
      fake_updates: updates of the fake denoiser for each of the generator.
      discriminator: (B, H, W, C) -> logits; None for none.
      adversarial_weight: of its loss for the generator.
    """

    network: Network
    prediction: Prediction
    sample_times: TimeSampler
    shape: tuple[int, ...]
    teacher: Teacher | None
    grid: Grid
    fake_updates: int = 5
    discriminator: nn.Module | None = None
    adversarial_weight: float = 0.0

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The fake denoiser's parameters, which are the model's, and the discriminator's."""
        made = {"fake": jax.tree.map(jnp.copy, params)}
        if self.discriminator is not None:
            x = jnp.zeros((1, *self.shape))
            made["discriminator"] = self.discriminator.init(jax.random.fold_in(key, 1), x)["params"]
        return ObjectiveState(made, None)

    def project(self, params: Any) -> Any:
        """The parameters with the fake denoiser's on the set that the network keeps its own on."""
        project = getattr(self.network, "project", None)
        return {**params, "fake": project(params["fake"])} if project else params

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The gradients of both; the loss is the fake denoiser's, the only one with a meaning.

        Metrics with a discriminator are its loss and the generator's.
        """
        schedule = self.prediction.schedule
        assert self.teacher is not None
        teach = self.teacher.denoiser(state.frozen)

        def times(stream: str) -> Array:
            return self.sample_times(
                inputs.key(stream), schedule, indices=inputs.indices, batch_size=inputs.batch_size
            )

        start, t = self._start(params, inputs)
        level, noise = times("matching_time"), normal_noise(inputs, stream="matching_noise")

        def logits_of(params: Any, x: Array) -> Array:
            assert self.discriminator is not None
            noisy = q_sample(schedule, x, t=level, eps=noise)
            logits: Array = self.discriminator.apply({"params": params}, noisy)
            return logits

        def generator_loss(params: Any) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            denoise = self.prediction.denoiser(in_training(self.network, params, inputs))
            x = denoise(start, t, inputs.cond).x_0
            loss = distribution_matching_loss(
                x,
                teacher=teach,
                fake=self.prediction.denoiser(in_evaluation(self.network, state.params["fake"])),
                schedule=schedule,
                t=level,
                eps=noise,
                cond=inputs.cond,
            ).mean()
            metrics = {}
            if self.discriminator is not None:
                judged = hinge_generator_loss(logits_of(state.params["discriminator"], x)).mean()
                loss, metrics = loss + self.adversarial_weight * judged, {"generator_loss": judged}
            return loss, (jax.lax.stop_gradient(x), metrics)

        (_, (x, metrics)), grads = jax.value_and_grad(generator_loss, has_aux=True)(params)

        def losses(params: Any) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            of_fake = diffusion_loss(
                in_training(self.network, params["fake"], inputs), x, prediction=self.prediction,
                t=times("time"), eps=normal_noise(inputs), cond=inputs.cond,
            ).mean()  # fmt: skip
            if self.discriminator is None:
                return of_fake, (of_fake, {})
            real, fake = (logits_of(params["discriminator"], v) for v in (inputs.x_0, x))
            judged = hinge_discriminator_loss(real, fake)
            return of_fake + judged, (of_fake, {"discriminator_loss": judged})

        (_, (loss, more)), others = jax.value_and_grad(losses, has_aux=True)(state.params)
        return LossAndGrads(
            loss, grads, others, None, metrics | more,
            train_model=(inputs.step + 1) % self.fake_updates == 0,
        )  # fmt: skip

    def _start(self, params: Any, inputs: LossInputs) -> tuple[Array, Array]:
        """(B, ...) inputs of the generator at one of the grid's times, and that time."""
        steps, (signal, noise) = self.grid.steps, self.grid.scales
        eps = normal_noise(inputs, stream="start")
        x_t = eps * jnp.float32(noise[0])
        if steps == 1:
            return x_t, jnp.asarray(self.grid.t[0])
        number = jax.random.randint(inputs.key("sampling_step"), (), 0, steps)
        denoise = self.prediction.denoiser(in_evaluation(self.network, params))
        for i in range(1, steps):
            again = normal_noise(inputs, stream=f"start_{i}")
            x_0 = denoise(x_t, jnp.asarray(self.grid.t[i - 1]), inputs.cond).x_0
            following = jnp.float32(signal[i]) * x_0 + jnp.float32(noise[i]) * again
            x_t = jnp.where(i <= number, following, x_t)
        return jax.lax.stop_gradient(x_t), jnp.asarray(self.grid.t[:-1])[number]
