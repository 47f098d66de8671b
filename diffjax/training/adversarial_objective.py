"""The objective of a GAN: two networks, each trained on its own loss of the same batch.

As in `autoencoder_objective`, the model's parameters are the generator's and the objective's are
the discriminator's. Both gradients are taken at the parameters before the step, with the same
samples y = G(z); R3GAN's own code updates the discriminator first and draws z again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax import rng
from diffjax.losses import adversarial
from diffjax.models.gan import Discriminator, Generator
from diffjax.training.objective import LossAndGrads, LossInputs, ObjectiveState
from diffjax.types import Array


class AdversarialLoss(NamedTuple):
    """What both networks are trained on, by the logits of real and of generated images.

    Attributes:
      of_discriminator: (real, fake) -> scalar.
      of_generator: (real, fake) -> scalar.
      gamma: twice the weight of both gradient penalties; 0 computes none.
    """

    of_discriminator: Callable[[Array, Array], Array]
    of_generator: Callable[[Array, Array], Array]
    gamma: float = 0.0


class AdversarialObjective(NamedTuple):
    """A generator against a discriminator; see `losses.adversarial`.

    Attributes:
      generator, discriminator: the networks.
      latent_size: Z of z, (B, Z).
      loss: what they are trained on.
      spectral_norm: whether the discriminator's kernels have spectral norm 1, all but the weights
        of places before its last layer.
    """

    generator: Generator
    discriminator: Discriminator
    latent_size: int
    loss: AdversarialLoss
    spectral_norm: bool = False

    def init_params(self, key: Array) -> Any:
        """The generator's parameters."""
        z, label = jnp.zeros((1, self.latent_size)), self._a_label(self.generator.num_classes)
        return self.generator.init(jax.random.split(key, 3)[0], z, label)["params"]

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The discriminator's parameters; with spectral norms, singular vectors as history."""
        _, key, direction_key = jax.random.split(key, 3)
        x = jnp.zeros((1, *self.generator.shape))
        label = self._a_label(self.discriminator.num_classes)
        params = self.discriminator.init(key, x, label)["params"]
        if not self.spectral_norm:
            return ObjectiveState(params, None)
        return ObjectiveState(params, adversarial.initial_directions(params, direction_key))

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The generator's loss, and the gradients of both.

        Metrics are discriminator_loss (without penalties), the mean logits real_logit and
        fake_logit, and with penalties their means, penalty_real and penalty_fake.
        """
        x, label = inputs.x_0, None if inputs.cond is None else inputs.cond.label
        z = rng.per_example(
            inputs.key("latent"),
            inputs.indices,
            lambda k: jax.random.normal(k, (self.latent_size,)),
        )
        y, backward = jax.vjp(lambda p: self.generator.apply({"params": p}, z, label), params)

        def logits_of(params: Any, images: Array, label: Array | None) -> Array:
            logits: Array = self.discriminator.apply({"params": params}, images, label)
            return logits

        both = jnp.concatenate([x, y])
        labels = None if label is None else jnp.concatenate([label, label])

        def discriminator_loss(params: Any) -> tuple[Array, Any]:
            params, history = self._kernels(params, state.history)
            of_both = partial(logits_of, params, label=labels)
            penalties = jnp.zeros(len(both))
            if self.loss.gamma:
                logits, penalties = adversarial.gradient_penalty(of_both, both)
            else:
                logits = of_both(both)
            (real, fake), (of_real, of_fake) = jnp.split(logits, 2), jnp.split(penalties, 2)
            of_real, of_fake = of_real.mean(), of_fake.mean()
            loss = self.loss.of_discriminator(real, fake)
            metrics = {
                "discriminator_loss": loss, "real_logit": real.mean(), "fake_logit": fake.mean()
            }  # fmt: skip
            if self.loss.gamma:
                metrics |= {"penalty_real": of_real, "penalty_fake": of_fake}
            return loss + self.loss.gamma / 2 * (of_real + of_fake), (metrics, history, real)

        grads, (metrics, history, real) = jax.grad(discriminator_loss, has_aux=True)(state.params)
        params, _ = self._kernels(state.params, state.history)
        loss, slope = jax.value_and_grad(
            lambda y: self.loss.of_generator(real, logits_of(params, y, label))
        )(y)
        return LossAndGrads(loss, backward(slope)[0], grads, history, metrics)

    def _kernels(self, params: Any, history: Any) -> tuple[Any, Any]:
        """The discriminator's parameters as they are used, and the next history."""
        if not self.spectral_norm:
            return params, history
        normed, history = adversarial.spectral_norm(params, history)
        # The weights of places are free, a learned scale of the logits (Miyato et al. 2018,
        # appendix E): with norm 1, these stay within the hinge loss's margins of +-1.
        return {**normed, "maps": params["maps"]}, history

    def _a_label(self, num_classes: int) -> Array | None:
        return jnp.zeros(1, jnp.int32) if num_classes else None
