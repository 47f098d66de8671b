"""What a diffusion model is trained on: a loss, and what is learned along with the network.

An objective is asked by the train step for the loss and all gradients of one batch. What it learns
or remembers besides the network (a schedule, a weighting, past losses) is its `Learned`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from diffjax import losses, rng, self_conditioning
from diffjax.denoisers import Network, predict
from diffjax.likelihood import bits, vdm
from diffjax.losses import importance_sampling, learned_schedules, learned_weighting
from diffjax.losses.learned_schedules import LearnedSchedule
from diffjax.losses.time_sampling import TimeSampler
from diffjax.losses.weightings import Weighting
from diffjax.parametrisations import Parametrisation
from diffjax.prediction import X0_CLIP, Prediction
from diffjax.process import q_sample, scales_like
from diffjax.schedules import ContinuousSchedule, variance_preserving
from diffjax.types import Array

# params -> the network with them, as it is trained.
Apply = Callable[[Any], Network]
# The name of a stream -> its key.
Keys = Callable[[str], Array]

# A schedule whose time is the log-SNR itself.
BY_LOG_SNR = ContinuousSchedule(lambda t: t, lambda log_snr: log_snr, variance_preserving)


class Learned(NamedTuple):
    """What an objective has besides the network's parameters; {} and None where it has nothing.

    Attributes:
      params: trained by gradients.
      history: past losses at each time; see `importance_sampling`.
    """

    params: Any
    history: Any


class Draws(NamedTuple):
    """A batch and its randomness.

    Attributes:
      x_0: (B, ...) data.
      eps: (B, ...) noise.
      cond: the condition, or None.
      key: the step's streams by name.
      indices: (B,) places in the global batch of `batch_size`.
      axis_name: of the devices that share the batch, or None.
    """

    x_0: Array
    eps: Array
    cond: Any
    key: Keys
    indices: Array
    batch_size: int
    axis_name: str | None


class Found(NamedTuple):
    """What a train step gets: the mean loss of this device's examples, and gradients.

    Attributes:
      loss: scalar.
      grads: by the network's parameters.
      learned_grads: by `Learned.params`.
      history: `Learned.history` after the batch.
    """

    loss: Array
    grads: Any
    learned_grads: Any
    history: Any


class Objective(Protocol):
    """A loss with all that it learns."""

    def init(self, key: Array) -> Learned:
        """The state of step 0."""
        ...

    def gradients(self, apply: Apply, params: Any, learned: Learned, draws: Draws) -> Found:
        """The loss and its gradients."""
        ...

    def held_out(
        self, apply: Apply, params: Any, x_0: Array, *, cond: Any, key: Keys, indices: Array
    ) -> Array:
        """(B,) losses of a network that is not trained, by the streams that `key` names."""
        ...


def _held_out_noise(key: Keys, indices: Array, x_0: Array) -> Array:
    return rng.per_example(key("noise"), indices, lambda k: jax.random.normal(k, x_0.shape[1:]))


class Weighted(NamedTuple):
    """A squared error, with or without a learned variance, and what may be added to it.

    Attributes:
      prediction: what the network predicts.
      target, weighting: as `losses.diffusion_loss` has them.
      sample_times: which times a batch sees.
      loss: `losses.diffusion_loss`, or `learned_variance.hybrid_loss` or `vlb_loss` with their
        options bound.
      by_importance: whether times are drawn by past losses instead of by `sample_times`.
      learned_weighting: whether a log-variance a noise level is learned.
      self_conditioning: share of examples that see the network's estimate.
    """

    prediction: Prediction
    target: Parametrisation
    weighting: Weighting
    sample_times: TimeSampler
    loss: Callable[..., Array] = losses.diffusion_loss
    by_importance: bool = False
    learned_weighting: bool = False
    self_conditioning: float = 0.0

    def init(self, key: Array) -> Learned:
        params = learned_weighting.init(key) if self.learned_weighting else {}
        history = (
            importance_sampling.empty(int(self.prediction.schedule.T))
            if self.by_importance
            else None
        )
        return Learned(params, history)

    def gradients(self, apply: Apply, params: Any, learned: Learned, draws: Draws) -> Found:
        t, weight = self._times(learned, draws)
        coins = None
        if self.self_conditioning:
            share = self.self_conditioning
            coins = rng.per_example(
                draws.key("self_conditioning"),
                draws.indices,
                lambda k: jax.random.bernoulli(k, share),
            )

        def loss_fn(params: Any, extra: Any) -> tuple[Array, Array]:
            network = apply(params)
            if coins is not None:
                network = self._shown(network, t, coins)
            each = self._each(network, draws.x_0, t=t, eps=draws.eps, cond=draws.cond)
            trained = weight * each
            if self.learned_weighting:
                log_snr = self.prediction.schedule.log_snr(t)
                of_level = learned_weighting.log_variance(extra, log_snr)
                trained = learned_weighting.weighted(trained, of_level)
            return trained.mean(), each

        (_, each), (grads, learned_grads) = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(params, learned.params)
        history = learned.history
        if self.by_importance:
            seen = t, each
            if draws.axis_name is not None:  # every device remembers the whole batch
                seen = jax.lax.all_gather(seen, draws.axis_name, tiled=True)
            history = importance_sampling.update(history, *seen)
        return Found((weight * each).mean(), grads, learned_grads, history)

    def held_out(
        self, apply: Apply, params: Any, x_0: Array, *, cond: Any, key: Keys, indices: Array
    ) -> Array:
        t = self.sample_times(
            key("time"), self.prediction.schedule, indices=indices, batch_size=len(x_0)
        )
        network = apply(params)
        if self.self_conditioning:
            network = self._shown(network, t, jnp.ones(len(x_0), bool))
        eps = _held_out_noise(key, indices, x_0)
        return self._each(network, x_0, t=t, eps=eps, cond=cond)

    def _times(self, learned: Learned, draws: Draws) -> tuple[Array, Array]:
        key = draws.key("time")
        if self.by_importance:
            return importance_sampling.sample(
                key, learned.history, indices=draws.indices, batch_size=draws.batch_size
            )
        t = self.sample_times(
            key, self.prediction.schedule, indices=draws.indices, batch_size=draws.batch_size
        )
        return t, jnp.ones(())

    def _shown(self, network: Network, t: Array, coins: Array) -> Network:
        return self_conditioning.training_network(
            network,
            self.prediction.schedule,
            t=t,
            coins=coins,
            parametrisation=self.prediction.parametrisation,
            limit=X0_CLIP,
        )

    def _each(self, network: Network, x_0: Array, *, t: Array, eps: Array, cond: Any) -> Array:
        schedule, parametrisation, time_input = self.prediction[:3]
        return self.loss(
            network, x_0, t=t, eps=eps, cond=cond,
            schedule=schedule, parametrisation=parametrisation, target=self.target,
            weighting=self.weighting, time_input=time_input,
        )  # fmt: skip


class Vdm(NamedTuple):
    """The continuous-time bound in bits per dimension, and a schedule that is learned with it.

    Attributes:
      prediction: its schedule is the config's, continuous and variance preserving; the learned one
        starts at its ends. Its time input is a function of the schedule's log-SNR.
      form: how log-SNR depends on t.
      learn_ends: whether the ends are learned, for which the prior and the reconstruction enter the
        training loss; of fixed ends these are constants, and are left out.
      sample_times: which times a batch sees.
    """

    prediction: Prediction
    form: LearnedSchedule
    learn_ends: bool
    sample_times: TimeSampler

    def init(self, key: Array) -> Learned:
        return Learned(self.form.init(key), None)

    def gradients(self, apply: Apply, params: Any, learned: Learned, draws: Draws) -> Found:
        t = self.sample_times(
            draws.key("time"),
            self.prediction.schedule,
            indices=draws.indices,
            batch_size=draws.batch_size,
        )

        def loss(params: Any, log_snr: Array, fall: Array) -> tuple[Array, None]:
            estimate = self._estimate(apply(params), draws, log_snr)
            each = vdm.diffusion_term(draws.x_0, estimate, log_snr=log_snr, fall=fall)
            return bits.bits_per_dim(each, dimensions=1), None

        (diffusion, _), (grads, schedule_grads) = learned_schedules.value_and_grad(
            loss, params, form=self.form, schedule_params=learned.params, t=t
        )
        if self.learn_ends:
            ends, more = jax.value_and_grad(self._ends)(learned.params, draws)
            of_ends = jax.tree.map(jnp.add, schedule_grads["ends"], more["ends"])
        else:
            ends = jnp.zeros(())
            of_ends = jax.tree.map(jnp.zeros_like, schedule_grads["ends"])
        return Found(diffusion + ends, grads, {**schedule_grads, "ends": of_ends}, None)

    def held_out(
        self, apply: Apply, params: Any, x_0: Array, *, cond: Any, key: Keys, indices: Array
    ) -> Array:
        schedule = self.prediction.schedule
        t = self.sample_times(key("time"), schedule, indices=indices, batch_size=len(x_0))
        eps = _held_out_noise(key, indices, x_0)
        denoise = self.prediction.denoiser(apply(params))
        bound = vdm.vdm_bound(
            denoise, x_0, schedule=schedule, t=t, eps=eps, eps_0=eps[::-1], cond=cond
        )
        return bound.total

    def _estimate(self, network: Network, draws: Draws, log_snr: Array) -> Array:
        x_t = q_sample(BY_LOG_SNR, draws.x_0, t=log_snr, eps=draws.eps)
        _, parametrisation, time_input = self.prediction[:3]
        output, scales = predict(
            network, x_t, t=log_snr, cond=draws.cond, schedule=BY_LOG_SNR,
            parametrisation=parametrisation, time_input=time_input,
        )  # fmt: skip
        return parametrisation.estimates(output, x_t, scales).x_0

    def _ends(self, schedule_params: Any, draws: Draws) -> Array:
        """The prior and the reconstruction, which the ends of the schedule decide."""
        first, last = (self.form.log_snr(schedule_params, jnp.full((), t)) for t in (0.0, 1.0))
        x = draws.x_0
        start = scales_like(BY_LOG_SNR, first, x)
        eps = rng.per_example(
            draws.key("reconstruction"), draws.indices, lambda k: jax.random.normal(k, x.shape[1:])
        )
        noisy = start.signal_scale * x + start.noise_scale * eps
        reconstruction = -vdm.level_decoder(start)(x, noisy).mean()
        return bits.bits_per_dim(vdm.prior_term(x, last).mean() + reconstruction, dimensions=1)
