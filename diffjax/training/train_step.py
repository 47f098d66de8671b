"""The train step: batch -> x_0 and condition -> loss and gradients -> update -> averages.

One pure function for diffusion models and autoencoders, which differ in their objective. It is a
function of the whole batch and refers to no device; see `distributed.strategy`. All randomness
follows from the seed, a stream's name, the step and an example's position in the batch.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffjax import ema, rng
from diffjax.augmentation import Augmentation, NonLeaking, choices
from diffjax.conditioning.conditions import Conditions
from diffjax.latent.space import DiffusionSpace
from diffjax.models.condition import drop_embedding
from diffjax.training.accumulation import mean_over_micro_batches
from diffjax.training.objective import (
    HeldOutObjective,
    LossAndGrads,
    LossInputs,
    Objective,
    ObjectiveState,
)
from diffjax.types import Array

Batch = dict[str, Array]
Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """The state of training, except for the position in the data.

    Attributes:
      step: int32 scalar: updates made.
      params: the model's parameters, float32.
      opt_state: their optax state.
      ema_params: the moving average of params.
      objective_state: see `ObjectiveState`.
      objective_opt_state: the optax state of its parameters.
      power_emas: averages of other lengths, snapshots of which are kept; see `posthoc_ema`.
    """

    step: Array
    params: Any
    opt_state: Any
    ema_params: Any
    objective_state: ObjectiveState
    objective_opt_state: Any = ()
    power_emas: tuple[Any, ...] = ()


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class StepParts(NamedTuple):
    """The parts of a train step and of its state.

    Attributes:
      init_params: key -> the model's parameters.
      space: the space of x_0: pixels, arrays or latents.
      conditions: the condition of a batch.
      objective: the loss and its own parameters.
      optimizer: of the model's parameters.
      objective_optimizer: of the objective's.
      ema_decay: step -> decay in [0, 1] of `ema_params`.
      seed: of all randomness, with the step.
      sigma_rels: relative standard deviations of `power_emas` (Karras et al. 2024, section 3).
      augmentations: (random stream, change of an image) pairs, applied in turn.
      non_leaking: a further augmentation, whose parameters are the network's condition; or None.
      condition_dropout: share of examples whose condition is dropped.
      embedding_dropout: share of examples whose image embedding is dropped, by itself.
      accumulate: number of micro-batches over which gradients are averaged.
      project: parameters -> those of the constraint that they are kept to, at first and after every
        update, before they are averaged; None for none. See `models.network`.
    """

    init_params: Callable[[Array], Any]
    space: DiffusionSpace
    conditions: Conditions
    objective: Objective
    optimizer: optax.GradientTransformation
    objective_optimizer: optax.GradientTransformation
    ema_decay: Callable[[Array], Array]
    seed: int
    sigma_rels: tuple[float, ...] = ()
    augmentations: tuple[tuple[str, Augmentation], ...] = ()
    non_leaking: NonLeaking | None = None
    condition_dropout: float = 0.0
    embedding_dropout: float = 0.0
    accumulate: int = 1
    project: Callable[[Any], Any] | None = None


def make_train_step(parts: StepParts) -> TrainStep:
    """train_step(state, batch) -> (state, metrics), pure.

    The batch is {"image": (B, ...), ...}; metrics are float32 scalars: loss, grad_norm and those of
    the objective. Raises ValueError if the objective can't be accumulated over micro-batches.
    """
    space, conditions, objective = parts.space, parts.conditions, parts.objective
    drop = conditions.dropping()

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch_size = len(batch["image"])

        def key(name: str) -> Array:
            return rng.stream(parts.seed, name, state.step)

        def loss_and_grads(part: tuple[Batch, Array]) -> LossAndGrads:
            rows, indices = part
            augment, parameters = _augmentation(parts, key, indices)
            x_0, spatial = space.read(rows, key=key, indices=indices, augment=augment)
            cond = conditions.of_batch(rows, spatial)
            if cond is not None:
                dropped = rng.per_example(
                    key("label"),
                    indices,
                    lambda k: jax.random.bernoulli(k, parts.condition_dropout),
                )
                cond = drop(cond, dropped)
                if cond.embedding is not None:
                    dropped = rng.per_example(
                        key("embedding"),
                        indices,
                        lambda k: jax.random.bernoulli(k, parts.embedding_dropout),
                    )
                    cond = drop_embedding(cond, dropped)
                if parameters is not None:
                    cond = cond._replace(augmentation=parameters)
            inputs = LossInputs(
                x_0, cond, key, indices, batch_size, state.step, state.ema_params,
                rows.get("noise"),
            )  # fmt: skip
            return objective.loss_and_grads(state.params, state.objective_state, inputs)

        examples = (batch, jnp.arange(batch_size))
        found = mean_over_micro_batches(loss_and_grads, examples, count=parts.accumulate)

        params, opt_state = _update(
            parts.optimizer, found.grads, state.opt_state, state.params, when=found.train_model,
            project=parts.project,
        )  # fmt: skip
        objective_params, objective_opt_state = _update(
            parts.objective_optimizer,
            found.objective_grads,
            state.objective_opt_state,
            state.objective_state.params,
            when=found.train_objective,
            project=getattr(objective, "project", None),
        )

        ema_params = ema.update(state.ema_params, params, decay=parts.ema_decay(state.step))
        power_emas = tuple(
            ema.update(average, params, decay=ema.power_decay(state.step, sigma_rel=sigma_rel))
            for average, sigma_rel in zip(state.power_emas, parts.sigma_rels, strict=True)
        )

        metrics = {
            "loss": found.loss,
            **found.metrics,
            "grad_norm": optax.global_norm(found.grads),
        }
        return TrainState(
            state.step + 1,
            params,
            opt_state,
            ema_params,
            state.objective_state._replace(params=objective_params, history=found.history),
            objective_opt_state,
            power_emas,
        ), metrics

    return train_step


def _augmentation(
    parts: StepParts, key: Callable[[str], Array], indices: Array
) -> tuple[Callable[[Array], Array] | None, Array | None]:
    """What changes the images of a batch, and the parameters that the network is given of it."""
    changes, non_leaking = parts.augmentations, parts.non_leaking
    if non_leaking is None:
        if not changes:
            return None, None
        return lambda x: choices.augment(changes, key, indices, x), None
    drawn = non_leaking.draw(key("augmentation"), indices)

    def augment(x: Array) -> Array:
        return non_leaking.apply(choices.augment(changes, key, indices, x), drawn)

    return augment, drawn.parameters()


def _update(
    optimizer: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    *,
    when: Array | None = None,
    project: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any]:
    """The parameters and the optimizer's state after an update; unchanged if not `when`."""

    def updated() -> tuple[Any, Any]:
        updates, new = optimizer.update(grads, opt_state, params)
        moved = optax.apply_updates(params, updates)
        return (project(moved) if project else moved), new

    if when is None:
        return updated()
    return jax.lax.cond(when, updated, lambda: (params, opt_state))


def init_state(parts: StepParts, *, shardings: Any = None) -> TrainState:
    """The state of step 0; parameters follow from the seed. Not to be called within a trace.

    Args:
      parts: see `StepParts`.
      shardings: a tree of shardings to place the state by; None for one device.
    """
    # One program instead of one per shape of a leaf. It runs once, so compile time dominates: on a
    # CPU, optimisation level 1 gives bit-identical results in half the time. A level set in
    # XLA_FLAGS takes precedence.
    set_by_user = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    quick = jax.default_backend() == "cpu" and not set_by_user
    options = {"xla_backend_optimization_level": 1} if quick else None
    return jax.jit(_initialiser(parts), compiler_options=options, out_shardings=shardings)(
        rng.stream(parts.seed, "init")
    )


def state_shapes(parts: StepParts) -> TrainState:
    """The state with jax.ShapeDtypeStruct for arrays; nothing is computed."""
    return jax.eval_shape(_initialiser(parts), rng.stream(0, "init"))


def _initialiser(parts: StepParts) -> Callable[[Array], TrainState]:
    def init(key: Array) -> TrainState:
        params = parts.init_params(key)
        if parts.project:
            params = parts.project(params)
        objective_state = parts.objective.init(key, params)

        def average() -> Any:
            return jax.tree.map(jnp.copy, params)  # separate buffers: the step donates both

        return TrainState(
            jnp.zeros((), jnp.int32),
            params,
            parts.optimizer.init(params),
            average(),
            objective_state,
            parts.objective_optimizer.init(objective_state.params),
            tuple(average() for _ in parts.sigma_rels),
        )

    return init


def make_eval_loss(
    space: DiffusionSpace, conditions: Conditions, objective: HeldOutObjective, *, seed: int
) -> Callable[[Any, Batch], Array]:
    """eval_loss(params, batch) -> scalar: the loss on held-out examples at fixed times and noise.

    Times are stratified and noise is the same at every call, so two calls differ by the parameters
    alone.
    """

    def eval_loss(params: Any, batch: Batch) -> Array:
        count = len(batch["image"])
        indices = jnp.arange(count)

        def key(name: str) -> Array:
            return rng.stream(seed, f"eval_{name}")

        x_0, spatial = space.read(batch, key=key, indices=indices)
        cond = conditions.of_batch(batch, spatial)
        inputs = LossInputs(x_0, cond, key, indices, count, jnp.zeros((), jnp.int32))
        return objective.held_out(params, inputs).mean()

    return jax.jit(eval_loss)
