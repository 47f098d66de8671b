"""The autoencoder's state and the one function that takes it to the next step.

Two networks are trained in one step, each on its own loss of the same batch: the autoencoder on

    L = |x - y| + p perceptual(x, y) + w adversarial(y) + regulariser(z),   y = D(z),        (1)

and, from a chosen step on, the discriminator on telling x from y. y is where all of L but the
regulariser comes together, so the losses are differentiated as functions of y, and one pass back
through the autoencoder takes their slopes from there. w is the adversarial weight times the ratio
of slopes at the decoder's last kernel (Esser et al. 2021, equation 7).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import ema, rng
from diffjax.images import random_flip, to_model_range
from diffjax.latent.first_stage import FirstStage, Frozen, Scaling
from diffjax.losses import autoencoding
from diffjax.losses.autoencoding import Features
from diffjax.training.state import Batch, Metrics, place_in_batch
from diffjax.types import Array


class AutoencoderState(NamedTuple):
    """All that training changes, apart from the data's position.

    Attributes:
      step: int32 scalar: updates made.
      params: {"encoder": ..., "decoder": ...}, float32.
      opt_state: optax's state of them.
      ema_params: the moving average of params.
      codebook: the regulariser's state, () where it has none.
      discriminator: {"params": ..., "opt_state": ...}, {} where there is none.
      scaling: of the averaged encoder's latents, as measured when a checkpoint is written.
    """

    step: Array
    params: Any
    opt_state: Any
    ema_params: Any
    codebook: Any
    discriminator: Any
    scaling: Scaling


class Objective(NamedTuple):
    """What an autoencoder is trained for.

    Attributes:
      difference: (x, y) -> (B,), the error of pixels.
      perceptual_weight: p of equation 1.
      features: what the perceptual distance compares; None for none.
      feature_weights: of the features, see `autoencoding.perceptual_distance`.
      discriminator: the patch discriminator; None for none.
      adversarial_weight: the factor on the ratio of slopes.
      adversarial_start: the step from which the discriminator is trained and listened to.
    """

    difference: Callable[[Array, Array], Array]
    perceptual_weight: float
    features: Features | None
    feature_weights: tuple[Array, ...] | None
    discriminator: nn.Module | None
    adversarial_weight: float
    adversarial_start: int

    def judge(self, x: Array, y: Array) -> tuple[Array, Metrics]:
        """The mean of |x - y| + p perceptual(x, y), and its parts."""
        difference = self.difference(x, y).mean()
        metrics = {"reconstruction": difference}
        if self.features is None:
            return difference, metrics
        distance = autoencoding.perceptual_distance(
            self.features, x, y, weights=self.feature_weights
        ).mean()
        return difference + self.perceptual_weight * distance, metrics | {"perceptual": distance}


def initialiser(
    stage: FirstStage, discriminator: nn.Module | None, optimizer: optax.GradientTransformation
) -> Callable[[Array], AutoencoderState]:
    """key -> the state of step 0."""

    def init(key: Array) -> AutoencoderState:
        keys = jax.random.split(key, 4)
        images = jnp.zeros((1, *stage.image_shape))
        latents = jnp.zeros((1, *stage.latent_shape))
        size = stage.image_shape[:2]
        params = {
            "encoder": stage.encoder.init(keys[0], images)["params"],
            "decoder": stage.decoder.init(keys[1], latents, size)["params"],
        }
        adversary: Any = {}
        if discriminator is not None:
            theirs = discriminator.init(keys[2], images)["params"]
            adversary = {"params": theirs, "opt_state": optimizer.init(theirs)}
        channels = stage.latent_shape[-1]
        return AutoencoderState(
            jnp.zeros((), jnp.int32),
            params,
            optimizer.init(params),
            jax.tree.map(jnp.copy, params),  # its own buffers: the step may donate both
            stage.regulariser.init(keys[3], channels),
            adversary,
            Scaling(jnp.zeros(channels), jnp.ones(channels)),
        )

    return init


def frozen(state: AutoencoderState) -> Frozen:
    """What is kept of a state when training is over."""
    return Frozen(state.ema_params, state.codebook, state.scaling)


def make_train_step(
    stage: FirstStage,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    flip: bool = False,
    axis_name: str | None = None,
) -> Callable[[AutoencoderState, Batch], tuple[AutoencoderState, Metrics]]:
    """train_step(state, batch) -> (state, metrics), pure.

    It knows of devices through `axis_name` alone, as `training.state.make_train_step` does.

    Args:
      stage: the networks and the regulariser.
      objective: what they are trained for.
      optimizer: an optax transformation, for the autoencoder and, apart, for the discriminator.
      seed: with the step, what all randomness follows from.
      ema_decay: see `ema.warmed_up_decay`.
      flip: whether half of the images are mirrored left to right.
      axis_name: the axis of a pmap, or None on one device.

    Returns:
      A function of a state and {"image": uint8 (B, H, W, C), ...}, whose metrics are float32
      scalars: loss (without the adversarial part), its parts, grad_norm, and adversarial_weight,
      generator and discriminator losses where there is a discriminator.
    """

    def mean(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def train_step(state: AutoencoderState, batch: Batch) -> tuple[AutoencoderState, Metrics]:
        indices, _ = place_in_batch(len(batch["image"]), axis_name)

        def key(name: str) -> Array:
            return rng.stream(seed, name, state.step)

        x = to_model_range(batch["image"])
        if flip:
            x = random_flip(key("flip"), indices, x)
        eps = rng.per_example(
            key("latent"), indices, lambda k: jax.random.normal(k, stage.latent_shape)
        )

        def forward(params: Any) -> tuple[tuple[Array, Array], Any]:
            latents_map = stage.encoder.apply({"params": params["encoder"]}, x)
            trained = stage.regulariser.train(
                state.codebook, latents_map, values=x[0].size, eps=eps, key=key("codebook"),
                axis_name=axis_name,
            )  # fmt: skip
            y, kept = stage.decoder.apply(
                {"params": params["decoder"]}, trained.z, x.shape[1:3], mutable=["intermediates"]
            )
            return (y, trained.penalty.mean()), (trained, kept["intermediates"]["last"][0])

        (y, penalty), pull_back, (trained, last) = jax.vjp(forward, state.params, has_aux=True)
        (judged, parts), slope = jax.value_and_grad(lambda y: objective.judge(x, y), has_aux=True)(
            y
        )
        metrics = {
            "loss": judged + penalty, "penalty": penalty, **parts, **trained.metrics,
        }  # fmt: skip
        discriminator = state.discriminator
        if objective.discriminator is not None:
            on = state.step >= objective.adversarial_start
            against = _against(objective.discriminator, discriminator["params"], x, y, on=on)
            ratio = autoencoding.adaptive_weight(
                mean(_at_last_kernel(stage, state.params, last, slope)),
                mean(_at_last_kernel(stage, state.params, last, against.slope)),
            )
            weight = jnp.where(on, objective.adversarial_weight * ratio, 0.0)
            slope = slope + weight * against.slope
            discriminator = _updated(optimizer, discriminator, mean(against.grads), on=on)
            metrics |= {"adversarial_weight": weight, **against.losses}
        (grads,) = pull_back((slope, jnp.ones(())))
        grads, metrics = mean((grads, metrics))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema.warmed_up_decay(state.step, decay=ema_decay)
        average = ema.update(state.ema_params, params, decay=decay)
        metrics |= {"grad_norm": optax.global_norm(grads)}
        return (
            AutoencoderState(
                state.step + 1, params, opt_state, average, trained.state, discriminator,
                state.scaling,
            ),
            metrics,
        )  # fmt: skip

    return train_step


class _Against(NamedTuple):
    """What a discriminator says of a batch: all zero while it is not listened to.

    Attributes:
      slope: of the generator's loss, by y.
      grads: of the discriminator's loss, by its parameters.
      losses: both, to log.
    """

    slope: Array
    grads: Any
    losses: Metrics


def _against(discriminator: nn.Module, params: Any, x: Array, y: Array, *, on: Array) -> _Against:
    def generator_loss(y: Array) -> Array:
        logits = discriminator.apply({"params": params}, y)
        return autoencoding.hinge_generator_loss(logits).mean()

    def discriminator_loss(params: Any) -> Array:
        logits = discriminator.apply({"params": params}, jnp.concatenate([x, y]))
        real, fake = jnp.split(logits, 2)
        return autoencoding.hinge_discriminator_loss(real, fake)

    def said() -> _Against:
        ours, slope = jax.value_and_grad(generator_loss)(y)
        theirs, grads = jax.value_and_grad(discriminator_loss)(params)
        return _Against(slope, grads, {"generator_loss": ours, "discriminator_loss": theirs})

    def nothing() -> _Against:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(said))

    return jax.lax.cond(on, said, nothing)


def _updated(
    optimizer: optax.GradientTransformation, discriminator: Any, grads: Any, *, on: Array
) -> Any:
    def update() -> Any:
        params, opt_state = discriminator["params"], discriminator["opt_state"]
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return {"params": optax.apply_updates(params, updates), "opt_state": opt_state}

    return jax.lax.cond(on, update, lambda: discriminator)


def _at_last_kernel(stage: FirstStage, params: Any, last: Array, slope: Array) -> Array:
    """The slope by the decoder's last kernel, of a loss whose slope by y is given."""
    head = params["decoder"]["head"]

    def end(kernel: Array) -> Array:
        h = stage.decoder.ops.conv(last.astype(jnp.float32), kernel, head["bias"], padding=1)
        return stage.decoder.to_images(h, slope.shape[1:3])

    return jax.vjp(end, head["kernel"])[1](slope)[0]


def make_eval_loss(stage: FirstStage, objective: Objective) -> Callable[[Frozen, Batch], Array]:
    """eval_loss(frozen, batch) -> scalar: |x - y| + p perceptual through the latents' means."""

    def eval_loss(frozen: Frozen, batch: Batch) -> Array:
        x = to_model_range(batch["image"])
        return objective.judge(x, stage.reconstruct(frozen, x))[0]

    return jax.jit(eval_loss)


def drawn_latents(stage: FirstStage, *, seed: int) -> Callable[[Frozen, Array, Array], Array]:
    """drawn(frozen, images, start) -> latents before scaling, (B, h, w, c), their noise included.

    start is the number of the first image, which its noise follows from.
    """

    def drawn(frozen: Frozen, images: Array, start: Array) -> Array:
        latents_map = stage.encode(frozen, to_model_range(images))
        eps = rng.per_example(
            rng.stream(seed, "scaling"),
            start + jnp.arange(len(images)),
            lambda k: jax.random.normal(k, stage.latent_shape),
        )
        return stage.regulariser.draw(latents_map, eps)

    return jax.jit(drawn)


def measured_scaling(z: np.ndarray) -> Scaling:
    """The scaling that gives (N, h, w, c) latents mean 0 and variance 1 in each channel."""
    axes = (0, 1, 2)
    shift, std = z.mean(axes, dtype=np.float64), z.std(axes, dtype=np.float64)
    return Scaling(jnp.float32(shift), jnp.float32(1 / np.maximum(std, 1e-6)))
