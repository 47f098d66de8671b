"""`config.train`: the learning rate, the optimizer and the averages."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffjax import ema
from diffjax.errors import UserError
from diffjax.experiment.spec import from_table, function_from_spec
from diffjax.training.training_task import LoopSettings
from diffjax.types import Array


def _adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> Callable[..., optax.GradientTransformation]:
    if not (0 <= b1 < 1 and 0 <= b2 < 1 and eps > 0):
        raise ValueError(f"b1 and b2 must be in [0, 1) and eps above 0, not {b1}, {b2} and {eps}")
    return partial(optax.adam, b1=b1, b2=b2, eps=eps)


def _adamw(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01
) -> Callable[..., optax.GradientTransformation]:
    _adam(b1, b2, eps)
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")
    return partial(optax.adamw, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def _cosine_cycles(cycles: int = 4) -> Callable[[float, int], optax.Schedule]:
    """Cosine decay to 0, again and again: for the stages of progressive distillation."""
    if cycles < 1:
        raise ValueError(f"cycles must be at least 1, not {cycles}")

    def schedule(peak: float, steps: int) -> optax.Schedule:
        ends = [-(-steps * i // cycles) for i in range(1, cycles)]
        parts = [optax.cosine_decay_schedule(peak, -(-steps // cycles)) for _ in range(cycles)]
        return optax.join_schedules(parts, ends)

    return schedule


def _inverse_sqrt(reference: int = 70_000) -> Callable[[float, int], optax.Schedule]:
    """peak / sqrt(max(step / reference, 1)) (Karras et al. 2024, EDM2, section 2.3).

    Steps are counted from the end of the warm-up.
    """
    if reference < 1:
        raise ValueError(f"reference must be at least 1 step, not {reference}")

    def schedule(peak: float, steps: int) -> optax.Schedule:
        return lambda step: peak / jnp.sqrt(jnp.maximum(step / reference, 1.0))

    return schedule


LEARNING_RATES: Mapping[str, Callable[..., Any]] = {
    "constant": lambda: lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda: optax.cosine_decay_schedule,
    "cosine_cycles": _cosine_cycles,
    "inverse_sqrt": _inverse_sqrt,
}
# (learning rate, a number or a function of the step) -> optax transformation
OPTIMIZERS: Mapping[str, Callable[..., Any]] = {
    "adam": _adam,
    "adamw": _adamw,
}
# The average used for sampling: config.train.ema_decay -> (step -> decay).
AVERAGES: Mapping[str, Callable[..., Any]] = {
    "warmed_up": lambda: lambda decay: partial(ema.warmed_up_decay, decay=decay),
    "constant": lambda: lambda decay: partial(ema.constant_decay, decay=decay),
    "inverse": lambda inv_gamma=1.0, power=2 / 3: (
        lambda decay: partial(ema.inverse_decay, inv_gamma=inv_gamma, power=power, max_decay=decay)
    ),
    "power": lambda sigma_rel=0.1: lambda decay: partial(ema.power_decay, sigma_rel=sigma_rel),
}


def learning_rate(config: Any) -> optax.Schedule:
    """Linear warm-up from 0 to config.train.learning_rate, then config.train.schedule.

    A path must name a function (peak, steps after the warm-up) -> optax schedule.
    """
    c = config.train
    decay = function_from_spec(c.schedule, LEARNING_RATES, key="train.schedule")
    try:
        rest = decay(c.learning_rate, max(1, c.steps - c.warmup_steps))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.train.schedule = {c.schedule!r}: it is called with (peak, steps after the "
            f"warm-up): {' '.join(str(error).split())}"
        ) from error
    if not callable(rest):
        raise UserError(
            f"config.train.schedule = {c.schedule!r} returned a {type(rest).__name__}: expected a "
            "function step -> learning rate"
        )
    if not c.warmup_steps:
        return rest
    warmup = optax.linear_schedule(0.0, c.learning_rate, c.warmup_steps)
    return optax.join_schedules([warmup, rest], [c.warmup_steps])


def optimizer(config: Any, *, every: int = 1) -> optax.GradientTransformation:
    """Gradient clipping by the global norm (0 for none), then config.train.optimizer.

    Args:
      config: complete.
      every: the steps from one update to the next. The learning rate is a function of the step,
        whereas optax counts updates.
    """
    text = config.train.optimizer
    make = function_from_spec(text, OPTIMIZERS, key="train.optimizer")
    clip = config.train.grad_clip
    chain = [optax.clip_by_global_norm(clip)] if clip else []
    of_step = learning_rate(config)
    try:
        made = make(of_step if every == 1 else lambda updates: of_step(every * updates))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.train.optimizer = {text!r}: {error}") from error
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise UserError(
            f"config.train.optimizer = {text!r} returned a {type(made).__name__}: expected a "
            "function of the learning rate that returns an optax.GradientTransformation"
        )
    return optax.chain(*chain, made)


def average_decay(config: Any) -> Callable[[Array], Array]:
    """step -> decay of the average of `config.train.ema`.

    Raises:
      UserError: an unknown name, or a width or power out of range.
    """
    c = config.train
    decay = from_table(c.ema, AVERAGES, key="train.ema")(c.ema_decay)
    try:
        jax.eval_shape(decay, jax.ShapeDtypeStruct((), jnp.int32))
        for width in c.ema_snapshots:
            ema.gamma_from_sigma_rel(width)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(
            f"config.train.ema = {c.ema!r}, ema_snapshots = {c.ema_snapshots}: {error}"
        ) from None
    return decay


def learned_optimizer(config: Any) -> optax.GradientTransformation:
    """Adam without weight decay, which would bias a learned schedule."""
    return optax.adam(learning_rate(config))


def loop_settings(config: Any) -> LoopSettings:
    """The settings of the training loop in `config.train`."""
    c = config.train
    return LoopSettings(
        steps=c.steps,
        batch_size=c.batch_size,
        log_every=c.log_every,
        eval_every=c.eval_every,
        checkpoint_every=c.checkpoint_every,
        sample_every=c.sample_every,
        skip_not_finite=c.on_not_finite == "skip",
        keep_every=c.keep_every,
    )
