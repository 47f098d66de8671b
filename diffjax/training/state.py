"""What a training run is at a step, and the one function that takes it to the next."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffjax import denoisers, ema, rng
from diffjax.losses.offset_noise import offset_noise
from diffjax.models.condition import Condition, drop
from diffjax.models.network import Network
from diffjax.prediction import Prediction
from diffjax.training.objective import Draws, Found, Learned, Objective
from diffjax.types import Array

Batch = dict[str, Array]
Metrics = dict[str, Array]
# step -> decay, of `ema`
Decay = Callable[[Array], Array]
# (batch, keys of the step's streams by name, places in the global batch) -> x_0 and its condition.
Read = Callable[[Batch, Callable[[str], Array], Array], tuple[Array, Condition | None]]


class TrainState(NamedTuple):
    """All that training changes, apart from the data's position.

    Attributes:
      step: int32 scalar: updates made.
      params: the network's parameters, float32.
      opt_state: optax's state.
      ema_params: the moving average of params.
      learned: what the objective has besides the network.
      learned_opt_state: its optax state.
      profiles: averages of other lengths, of which snapshots are kept; see `posthoc_ema`.
    """

    step: Array
    params: Any
    opt_state: Any
    ema_params: Any
    learned: Any = ()
    learned_opt_state: Any = ()
    profiles: tuple[Any, ...] = ()


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Trained(NamedTuple):
    """What a state is made for.

    Attributes:
      network: the network.
      prediction: what it predicts.
      objective: what it is trained on.
      shape: of one x_0.
      cond: an example's condition in shapes, or None.
      optimizer: of its parameters.
      learned_optimizer: for what the objective learns.
      widths: sigma_rel of the averages of which snapshots are kept (`ema.power_decay`).
    """

    network: Network
    prediction: Prediction
    objective: Objective
    shape: tuple[int, ...]
    cond: Any
    optimizer: optax.GradientTransformation
    learned_optimizer: optax.GradientTransformation
    widths: tuple[float, ...] = ()


def init_state(trained: Trained, *, seed: int, shardings: Any = None) -> TrainState:
    """A fresh state; parameters are a function of the seed. Not to be called within a trace.

    Args:
      trained: what it is made for.
      seed: what the parameters follow from.
      shardings: a tree of them, where the state is to lie; None for one device.
    """
    # One program, not one for every shape of a leaf. It runs once, so what matters is how soon it
    # is compiled, and on a CPU LLVM's first level gives the last one's bits in half the time. Who
    # asked XLA for a level gets that one.
    asked = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    first = jax.default_backend() == "cpu" and not asked
    options = {"xla_backend_optimization_level": 1} if first else None
    return jax.jit(_initialiser(trained), compiler_options=options, out_shardings=shardings)(
        rng.stream(seed, "init")
    )


def state_shapes(trained: Trained) -> TrainState:
    """The state with jax.ShapeDtypeStruct for arrays; nothing is computed."""
    return jax.eval_shape(_initialiser(trained), rng.stream(0, "init"))


def _initialiser(trained: Trained) -> Callable[[Array], TrainState]:
    network, prediction, objective, shape, cond, optimizer, learned_optimizer, widths = trained

    def init(key: Array) -> TrainState:
        x = jnp.zeros((1, *prediction.input_shape(shape)))
        given = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), cond)
        params = network.init(key, x, jnp.zeros((1,)), given)
        learned = objective.init(jax.random.fold_in(key, 1))

        def average() -> Any:
            return jax.tree.map(jnp.copy, params)  # its own buffers: the step donates both

        return TrainState(
            jnp.zeros((), jnp.int32),
            params,
            optimizer.init(params),
            average(),
            learned,
            learned_optimizer.init(learned.params),
            tuple(average() for _ in widths),
        )

    return init


def place_in_batch(local: int, axis_name: str | None) -> tuple[Array, int]:
    """The places (local,) of this device's examples in the global batch, and its size."""
    if axis_name is None:
        return jnp.arange(local), local
    place, devices = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    return place * local + jnp.arange(local), local * devices


def micro_batches(tree: Any, count: int) -> Any:
    """(B, ...) arrays as (count, B / count, ...): every count-th example goes together.

    So a batch that is split among devices in runs stays where it is.
    """
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1),
        tree,
    )


def mean_found(gradients: Callable[[Any], Found], parts: Any, like: tuple[Any, Any]) -> Found:
    """The mean of gradients(part) over micro-batches, one at a time: in the memory of one.

    Args:
      gradients: of a micro-batch.
      parts: micro-batches, stacked.
      like: trees that the gradients are like: parameters, and `Learned.params`.

    Raises:
      ValueError: an objective that remembers losses, which would have to learn of all at once.
    """
    count = jax.tree.leaves(parts)[0].shape[0]
    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), *like))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        found = gradients(part)
        if found.history is not None:
            raise ValueError(
                f"train.accumulate = {count} can't go with an objective that keeps a state from "
                "step to step, as time_sampling = 'loss_second_moment' does: expected 1"
            )
        return jax.tree.map(jnp.add, total, (found.loss, found.grads, found.learned_grads)), None

    total, _ = jax.lax.scan(add, zeros, parts)
    loss, grads, learned_grads = jax.tree.map(lambda x: x / count, total)
    return Found(loss, grads, learned_grads, None)


def make_train_step(
    trained: Trained,
    *,
    seed: int,
    decay: Decay,
    read: Read,
    condition_dropout: float = 0.0,
    offset: float = 0.0,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> TrainStep:
    """train_step(state, batch) -> (state, metrics), pure.

    It knows of devices through `axis_name` alone: gradients and metrics are means over that axis,
    and an example's times, noise, dropped condition and flip depend on its place in the global
    batch.
    The network's own dropout alone draws by device.

    Args:
      trained: the network, its objective, the optimizers.
      seed: with the step, what all randomness follows from.
      decay: of the moving average: step -> a number in [0, 1].
      read: takes x_0, (B, ...) float32, and the condition from a batch.
      condition_dropout: share of examples whose condition is left out.
      offset: strength of `offset_noise`.
      accumulate: micro-batches that a batch is divided into, whose gradients are averaged.
      axis_name: the axis of a pmap, or None on one device and under jit, which sees the whole
        batch wherever it lies.

    Returns:
      A function of a state and {"image": (B, ...), ...}, whose metrics are float32 scalars: loss,
      grad_norm.
    """
    network, objective = trained.network, trained.objective
    optimizer, learned_optimizer = trained.optimizer, trained.learned_optimizer

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        places, batch_size = place_in_batch(len(batch["image"]), axis_name)

        def key(name: str) -> Array:
            return rng.stream(seed, name, state.step)

        def gradients(part: tuple[Batch, Array]) -> Found:
            batch, indices = part
            x_0, cond = read(batch, key, indices)
            eps = rng.per_example(
                key("noise"), indices, lambda k: jax.random.normal(k, x_0.shape[1:])
            )
            if offset:
                eps = offset_noise(key("offset_noise"), indices, eps, strength=offset)
            if cond is not None:
                dropped = rng.per_example(
                    key("label"), indices, lambda k: jax.random.bernoulli(k, condition_dropout)
                )
                cond = drop(cond, dropped)
            dropout_key = jax.random.fold_in(key("dropout"), indices[0])

            def apply(params: Any) -> denoisers.Network:
                return lambda x, t, cond: network.apply(
                    params, x, t, cond, train=True, key=dropout_key
                )

            draws = Draws(x_0, eps, cond, key, indices, batch_size, axis_name)
            return objective.gradients(apply, state.params, state.learned, draws)

        if accumulate == 1:
            found = gradients((batch, places))
        else:
            parts = micro_batches((batch, places), accumulate)
            found = mean_found(gradients, parts, (state.params, state.learned.params))
        loss, grads, learned_grads = found.loss, found.grads, found.learned_grads
        if axis_name is not None:
            loss, grads, learned_grads = jax.lax.pmean((loss, grads, learned_grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        updates, learned_opt_state = learned_optimizer.update(
            learned_grads, state.learned_opt_state, state.learned.params
        )
        learned = Learned(optax.apply_updates(state.learned.params, updates), found.history)
        average = ema.update(state.ema_params, params, decay=decay(state.step))
        profiles = tuple(
            ema.update(profile, params, decay=ema.power_decay(state.step, sigma_rel=width))
            for profile, width in zip(state.profiles, trained.widths, strict=True)
        )
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)}
        return (
            TrainState(
                state.step + 1, params, opt_state, average, learned, learned_opt_state, profiles
            ),
            metrics,
        )

    return train_step


def make_eval_loss(
    network: Network, objective: Objective, *, seed: int, read: Read
) -> Callable[[Any, Batch], Array]:
    """eval_loss(params, batch) -> scalar: the loss on given images at fixed times and noise.

    Times are stratified and noise is the same at every call, so two calls differ by the parameters
    alone.
    """

    def eval_loss(params: Any, batch: Batch) -> Array:
        indices = jnp.arange(len(batch["image"]))

        def key(name: str) -> Array:
            return rng.stream(seed, f"eval_{name}")

        def apply(params: Any) -> denoisers.Network:
            return lambda x, t, cond: network.apply(params, x, t, cond)

        x_0, cond = read(batch, key, indices)
        return objective.held_out(apply, params, x_0, cond=cond, key=key, indices=indices).mean()

    return jax.jit(eval_loss)
