"""The objective of an autoencoder: reconstruction, perceptual and adversarial losses.

Two networks are trained in one step, each on its own loss of the same batch: the autoencoder on

    L = |x - y| + p perceptual(x, y) + w adversarial(y) + regulariser(z),   y = D(z),        (1)

and, from a chosen step on, the discriminator on classifying x against y. All of L but the
regulariser is a function of y, so those losses are differentiated with respect to y, and one
backward pass through the autoencoder starts from there. w is the adversarial weight times the ratio
of gradient norms at the decoder's last kernel (Esser et al. 2021, equation 7).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffjax import rng
from diffjax.images import to_model_range
from diffjax.latent.first_stage import FirstStage, Scaling, StageParams
from diffjax.losses import adversarial, autoencoding
from diffjax.losses.autoencoding import Features
from diffjax.training.objective import LossAndGrads, LossInputs, ObjectiveState
from diffjax.training.train_step import Batch, Metrics, TrainState
from diffjax.types import Array


class ReconstructionLoss(NamedTuple):
    """|x - y| + p perceptual(x, y) of equation (1).

    Attributes:
      difference: (x, y) -> (B,), the error of pixels.
      perceptual_weight: p.
      features: features of the perceptual distance; None for no distance.
      feature_weights: see `autoencoding.perceptual_distance`.
    """

    difference: Callable[[Array, Array], Array]
    perceptual_weight: float = 0.0
    features: Features | None = None
    feature_weights: tuple[Array, ...] | None = None

    def __call__(self, x: Array, y: Array) -> tuple[Array, Metrics]:
        """The mean over the batch, and its terms."""
        difference = self.difference(x, y).mean()
        metrics = {"reconstruction": difference}
        if self.features is None:
            return difference, metrics
        distance = autoencoding.perceptual_distance(
            self.features, x, y, weights=self.feature_weights
        ).mean()
        return difference + self.perceptual_weight * distance, metrics | {"perceptual": distance}


class StageHistory(NamedTuple):
    """An autoencoder's state besides its parameters and the discriminator's.

    Attributes:
      codebook: the regulariser's state, () if it has none.
      scaling: of the averaged encoder's latents, as measured when a checkpoint is written.
    """

    codebook: Any
    scaling: Scaling


class AutoencoderObjective(NamedTuple):
    """Equation (1).

    Attributes:
      stage: the networks and the regulariser.
      reconstruction_loss: its first two terms.
      discriminator: the patch discriminator; None for none.
      adversarial_weight: the factor on the ratio of gradient norms.
      adversarial_start: the step from which the discriminator is trained, and its loss used.
    """

    stage: FirstStage
    reconstruction_loss: ReconstructionLoss
    discriminator: nn.Module | None
    adversarial_weight: float
    adversarial_start: int

    def init_params(self, key: Array) -> Any:
        """{"encoder": ..., "decoder": ...}."""
        keys, stage = jax.random.split(key, 4), self.stage
        images = jnp.zeros((1, *stage.image_shape))
        latents = jnp.zeros((1, *stage.latent_shape))
        return {
            "encoder": stage.encoder.init(keys[0], images)["params"],
            "decoder": stage.decoder.init(keys[1], latents, stage.image_shape[:2])["params"],
        }

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The discriminator's parameters, {} for none; codebook and scaling as history."""
        keys, stage = jax.random.split(key, 4), self.stage
        params = {}
        if self.discriminator is not None:
            images = jnp.zeros((1, *stage.image_shape))
            params = self.discriminator.init(keys[2], images)["params"]
        channels = stage.latent_shape[-1]
        scaling = Scaling(jnp.zeros(channels), jnp.ones(channels))
        return ObjectiveState(
            params, StageHistory(stage.regulariser.init(keys[3], channels), scaling)
        )

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The loss without its adversarial part; gradients of all of it.

        Metrics are its terms and, with a discriminator, adversarial_weight, generator_loss and
        discriminator_loss.
        """
        x, stage, history = inputs.x_0, self.stage, state.history
        eps = rng.per_example(
            inputs.key("latent"),
            inputs.indices,
            lambda k: jax.random.normal(k, stage.latent_shape),
        )

        def forward(params: Any) -> tuple[tuple[Array, Array], Any]:
            latents_map = stage.encoder.apply({"params": params["encoder"]}, x)
            regularised = stage.regulariser.train(
                history.codebook, latents_map, values=x[0].size, eps=eps, key=inputs.key("codebook")
            )
            y, kept = stage.decoder.apply(
                {"params": params["decoder"]}, regularised.z, x.shape[1:3],
                mutable=["intermediates"],
            )  # fmt: skip
            last = kept["intermediates"]["last"][0]
            return (y, regularised.penalty.mean()), (regularised, last)

        (y, penalty), backward, (regularised, last) = jax.vjp(forward, params, has_aux=True)
        (reconstruction, parts), grad_y = jax.value_and_grad(
            lambda y: self.reconstruction_loss(x, y), has_aux=True
        )(y)
        metrics = {"penalty": penalty, **parts, **regularised.metrics}
        discriminator_grads, on = {}, None
        if self.discriminator is not None:
            on = inputs.step >= self.adversarial_start
            adversary = _adversarial_terms(self.discriminator, state.params, x, y, on=on)
            ratio = autoencoding.adaptive_weight(
                self.gradient_at_last_kernel(params, last, grad_y),
                self.gradient_at_last_kernel(params, last, adversary.grad_y),
            )
            weight = jnp.where(on, self.adversarial_weight * ratio, 0.0)
            grad_y = grad_y + weight * adversary.grad_y
            discriminator_grads = adversary.grads
            metrics |= {"adversarial_weight": weight, **adversary.losses}
        (grads,) = backward((grad_y, jnp.ones(())))
        return LossAndGrads(
            reconstruction + penalty,
            grads,
            discriminator_grads,
            StageHistory(regularised.state, history.scaling),
            metrics,
            train_objective=on,
        )

    def gradient_at_last_kernel(self, params: Any, last: Array, grad_y: Array) -> Array:
        """A loss's gradient with respect to the decoder's last kernel, from that at y."""
        decoder = self.stage.decoder
        head = params["decoder"]["head"]

        def end(kernel: Array) -> Array:
            h = decoder.ops.conv(last.astype(jnp.float32), kernel, head["bias"], padding=1)
            return decoder.to_images(h, self.stage.image_shape[:2])

        return jax.vjp(end, head["kernel"])[1](grad_y)[0]


class _Adversarial(NamedTuple):
    """Losses of a discriminator and of the generator, and gradients; zeros before the start.

    Attributes:
      grad_y: of the generator's loss with respect to y.
      grads: of the discriminator's loss with respect to its parameters.
      losses: both, to log.
    """

    grad_y: Array
    grads: Any
    losses: Metrics


def _adversarial_terms(
    discriminator: nn.Module, params: Any, x: Array, y: Array, *, on: Array
) -> _Adversarial:
    def generator_loss(y: Array) -> Array:
        logits = discriminator.apply({"params": params}, y)
        return adversarial.hinge_generator_loss(logits).mean()

    def discriminator_loss(params: Any) -> Array:
        logits = discriminator.apply({"params": params}, jnp.concatenate([x, y]))
        real, fake = jnp.split(logits, 2)
        return adversarial.hinge_discriminator_loss(real, fake)

    def terms() -> _Adversarial:
        generator, grad_y = jax.value_and_grad(generator_loss)(y)
        discriminator, grads = jax.value_and_grad(discriminator_loss)(params)
        losses = {"generator_loss": generator, "discriminator_loss": discriminator}
        return _Adversarial(grad_y, grads, losses)

    def zeros() -> _Adversarial:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(terms))

    return jax.lax.cond(on, terms, zeros)


def stage_params(state: TrainState) -> StageParams:
    """The averaged networks, the codebook and the scaling."""
    history = state.objective_state.history
    return StageParams(state.ema_params, history.codebook, history.scaling)


def with_scaling(state: TrainState, scaling: Scaling) -> TrainState:
    """The state with the scaling of its latents."""
    objective_state = state.objective_state
    history = objective_state.history._replace(scaling=scaling)
    return state._replace(objective_state=objective_state._replace(history=history))


def make_eval_loss(
    stage: FirstStage, reconstruction_loss: ReconstructionLoss
) -> Callable[[StageParams, Batch], Array]:
    """eval_loss(params, batch) -> scalar: |x - y| + p perceptual through the latents' means."""

    def eval_loss(params: StageParams, batch: Batch) -> Array:
        x = to_model_range(batch["image"])
        return reconstruction_loss(x, stage.reconstruct(params, x))[0]

    return jax.jit(eval_loss)


def sampled_latents(
    stage: FirstStage, *, seed: int
) -> Callable[[StageParams, np.ndarray, int], Array]:
    """sampled(params, images, start) -> sampled latents before scaling, (B, h, w, c).

    start is the index of the first image, which determines its noise.
    """

    def sampled(params: StageParams, images: Array, start: Array) -> Array:
        latents_map = stage.encode(params, to_model_range(images))
        eps = rng.per_example(
            rng.stream(seed, "scaling"),
            start + jnp.arange(len(images)),
            lambda k: jax.random.normal(k, stage.latent_shape),
        )
        return stage.regulariser.sample(latents_map, eps)

    return jax.jit(sampled)


def measured_scaling(z: np.ndarray) -> Scaling:
    """The scaling that gives (N, h, w, c) latents mean 0 and variance 1 per channel."""
    axes = (0, 1, 2)
    shift, std = z.mean(axes, dtype=np.float64), z.std(axes, dtype=np.float64)
    return Scaling(jnp.float32(shift), jnp.float32(1 / np.maximum(std, 1e-6)))
