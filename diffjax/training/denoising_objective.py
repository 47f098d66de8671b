"""The objective of a diffusion model: a weighted squared error, with optional extensions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax import denoisers, rng, self_conditioning
from diffjax.losses import importance_sampling, learned_weighting
from diffjax.losses.denoising import diffusion_loss
from diffjax.losses.offset_noise import offset_noise
from diffjax.losses.time_sampling import TimeSampler
from diffjax.models.network import Network
from diffjax.prediction import X0_CLIP, Prediction
from diffjax.training.objective import LossAndGrads, LossInputs, ObjectiveState
from diffjax.types import Array


class Draws(NamedTuple):
    """What is random in the losses of a batch.

    Attributes:
      t: (B,) times.
      importance: their importance weights, (B,) or a scalar.
      eps: (B, ...) noise.
      use_estimate: (B,) bool: the examples that are conditioned on the network's own estimate; None
        for none.
    """

    t: Array
    importance: Array
    eps: Array
    use_estimate: Array | None


class DenoisingObjective(NamedTuple):
    """The squared error of a prediction, with or without a learned variance.

    Attributes:
      network: the network trained.
      prediction: its schedule, parametrisation and time input.
      sample_times: distribution of the times of a batch.
      loss: (network, x_0, prediction=, t=, eps=, cond=) -> (B,): `losses.diffusion_loss`, or
        `learned_variance.hybrid_loss` or `vlb_loss`, with their options bound.
      by_importance: whether times are drawn by past losses instead of by `sample_times`.
      learned_weighting: whether a log-variance for each noise level is learned.
      self_conditioning: share of examples conditioned on the network's own estimate.
      offset_noise: strength of `losses.offset_noise`.
    """

    network: Network
    prediction: Prediction
    sample_times: TimeSampler
    loss: Callable[..., Array] = diffusion_loss
    by_importance: bool = False
    learned_weighting: bool = False
    self_conditioning: float = 0.0
    offset_noise: float = 0.0

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The parameters of the learned weighting and the past losses, if used."""
        params = (
            learned_weighting.init(jax.random.fold_in(key, 1)) if self.learned_weighting else {}
        )
        history = (
            importance_sampling.empty(int(self.prediction.schedule.T))
            if self.by_importance
            else None
        )
        return ObjectiveState(params, history)

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The weighted loss and its gradients; past losses after the batch as history."""
        draws = self.draw(state, inputs)

        def loss_fn(params: Any, weighting_params: Any) -> tuple[Array, Array]:
            network = in_training(self.network, params, inputs)
            weighted, each = self.losses(network, weighting_params, inputs, draws)
            return weighted.mean(), each

        (_, each), (grads, weighting_grads) = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(params, state.params)
        history = self.history(state, draws, each)
        return LossAndGrads((draws.importance * each).mean(), grads, weighting_grads, history)

    def draw(self, state: ObjectiveState, inputs: LossInputs) -> Draws:
        """What is random in the losses of a batch."""
        t, importance = self._times(state, inputs)
        eps = normal_noise(inputs)
        if self.offset_noise:
            eps = offset_noise(
                inputs.key("offset_noise"), inputs.indices, eps, strength=self.offset_noise
            )
        return Draws(t, importance, eps, self._examples_that_see_the_estimate(inputs))

    def losses(
        self, network: denoisers.NetworkFn, weighting_params: Any, inputs: LossInputs, draws: Draws
    ) -> tuple[Array, Array]:
        """(B,) the losses whose mean is minimised, and (B,) those without importance and learned
        weights."""
        if draws.use_estimate is not None:
            network = self._self_conditioned(network, draws.t, draws.use_estimate)
        each = self._each(network, inputs.x_0, t=draws.t, eps=draws.eps, cond=inputs.cond)
        weighted = draws.importance * each
        if self.learned_weighting:
            log_snr = self.prediction.schedule.log_snr(draws.t)
            log_variance = learned_weighting.log_variance(weighting_params, log_snr)
            weighted = learned_weighting.weighted(weighted, log_variance)
        return weighted, each

    def history(self, state: ObjectiveState, draws: Draws, each: Array) -> Any:
        """The past losses after those of a batch, if times are drawn by them."""
        if not self.by_importance:
            return state.history
        return importance_sampling.update(state.history, draws.t, each)

    def held_out(self, params: Any, inputs: LossInputs) -> Array:
        """(B,) losses without dropout; every example is conditioned on the network's estimate."""
        t = self._sampled_times(inputs)
        network = in_evaluation(self.network, params)
        if self.self_conditioning:
            network = self._self_conditioned(network, t, jnp.ones(len(inputs.x_0), bool))
        eps = normal_noise(inputs)
        return self._each(network, inputs.x_0, t=t, eps=eps, cond=inputs.cond)

    def _times(self, state: ObjectiveState, inputs: LossInputs) -> tuple[Array, Array]:
        """(B,) times, and their importance weights."""
        if self.by_importance:
            return importance_sampling.sample(
                inputs.key("time"),
                state.history,
                indices=inputs.indices,
                batch_size=inputs.batch_size,
            )
        return self._sampled_times(inputs), jnp.ones(())

    def _sampled_times(self, inputs: LossInputs) -> Array:
        return self.sample_times(
            inputs.key("time"),
            self.prediction.schedule,
            indices=inputs.indices,
            batch_size=inputs.batch_size,
        )

    def _examples_that_see_the_estimate(self, inputs: LossInputs) -> Array | None:
        share = self.self_conditioning
        if not share:
            return None
        return rng.per_example(
            inputs.key("self_conditioning"),
            inputs.indices,
            lambda k: jax.random.bernoulli(k, share),
        )

    def _self_conditioned(
        self, network: denoisers.NetworkFn, t: Array, use_estimate: Array
    ) -> denoisers.NetworkFn:
        return self_conditioning.training_network(
            network,
            self.prediction.schedule,
            t=t,
            use_estimate=use_estimate,
            parametrisation=self.prediction.parametrisation,
            limit=X0_CLIP,
        )

    def _each(
        self, network: denoisers.NetworkFn, x_0: Array, *, t: Array, eps: Array, cond: Any
    ) -> Array:
        return self.loss(network, x_0, prediction=self.prediction, t=t, eps=eps, cond=cond)


def in_training(network: Network, params: Any, inputs: LossInputs) -> denoisers.NetworkFn:
    """The network with its parameters as a function of (x, t, cond), with this batch's dropout."""
    dropout_key = jax.random.fold_in(inputs.key("dropout"), inputs.indices[0])
    return lambda x, t, cond: network.apply(params, x, t, cond, train=True, key=dropout_key)


def in_evaluation(network: Network, params: Any) -> denoisers.NetworkFn:
    """The network with its parameters as a function of (x, t, cond), without dropout."""
    return lambda x, t, cond: network.apply(params, x, t, cond)


def normal_noise(inputs: LossInputs, *, stream: str = "noise") -> Array:
    """Standard normal noise of x_0's shape, by example; x_0's own if it comes with it."""
    if inputs.noise is not None and stream == "noise":
        return inputs.noise.astype(inputs.x_0.dtype)
    shape = inputs.x_0.shape[1:]
    return rng.per_example(
        inputs.key(stream), inputs.indices, lambda k: jax.random.normal(k, shape)
    )
