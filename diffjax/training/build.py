"""A config's strings become functions, here and in `build_sampling` and nowhere else.

A choice is the name of a function in the core, with arguments where the defaults do not do; see
`choices`. Here is what a model is and how it is trained.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffjax import (
    accelerator,
    categorical,
    denoisers,
    ema,
    parametrisations,
    schedules,
    self_conditioning,
    time_sampling,
    weightings,
)
from diffjax.errors import UserError
from diffjax.models import ConvNeXtBlock, ResNetBlock, UNet, linear_attention, remat
from diffjax.models.ops import XLA, Ops
from diffjax.schedules import Array, Schedule
from diffjax.training import build_objective
from diffjax.training.choices import choose, read_choice
from diffjax.training.conditions import UNCONDITIONAL, Conditions
from diffjax.training.objective import SHOWN, Objective, Weighted


def _convnext(expansion: int = 2) -> Callable[..., Any]:
    if expansion < 1:
        raise ValueError(f"expansion must be at least 1, not {expansion}")
    return partial(ConvNeXtBlock, expansion=expansion)


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


# Each table maps a name to what makes the object; a maker without parameters takes no arguments.
SCHEDULES: Mapping[str, Callable[..., Any]] = {
    make.__name__: make
    for make in (
        schedules.linear_beta,
        schedules.quadratic_beta,
        schedules.linear_alpha_bar,
        schedules.cosine,
        schedules.sigmoid,
        schedules.continuous_cosine,
        schedules.linear_log_snr,
        schedules.karras,
        schedules.rectified_flow,
    )
}
PARAMETRISATIONS: Mapping[str, Callable[..., Any]] = {
    "x0": lambda: parametrisations.x0,
    "eps": lambda: parametrisations.eps,
    "v": lambda: parametrisations.v,
    "score": lambda: parametrisations.score,
    "velocity": lambda: parametrisations.velocity,
    "edm": parametrisations.edm,
    "categorical": categorical.categorical,
}
WEIGHTINGS: Mapping[str, Callable[..., Any]] = {
    "uniform": lambda: weightings.uniform,
    "snr": lambda: weightings.snr,
    "truncated_snr": lambda: weightings.truncated_snr,
    "min_snr": weightings.min_snr,
    "p2": weightings.p2,
    "sigmoid": weightings.sigmoid,
    "edm": weightings.edm,
    "vlb": lambda: weightings.vlb,
}
TIME_SAMPLERS: Mapping[str, Callable[..., Any]] = {
    "uniform": lambda: time_sampling.uniform,
    "low_discrepancy": lambda: time_sampling.low_discrepancy,
    "logit_normal": time_sampling.logit_normal,
    "log_normal": time_sampling.log_normal,
    # Drawn so before any loss is known, and for held-out images; see `Weighted.by_importance`.
    "loss_second_moment": lambda: time_sampling.uniform,
}
BLOCKS: Mapping[str, Callable[..., Any]] = {
    "resnet": lambda: ResNetBlock,
    "convnext": _convnext,
}
ATTENTIONS: Mapping[str, Callable[..., Any]] = {
    "softmax": lambda: jax.nn.dot_product_attention,
    "linear": lambda: linear_attention,
}
DTYPES: Mapping[str, Callable[..., Any]] = {
    "float32": lambda: jnp.float32,
    "bfloat16": lambda: jnp.bfloat16,
}
KERNELS: Mapping[str, Callable[..., Any]] = {
    "auto": lambda: accelerator.auto,
    "onednn": lambda: accelerator.onednn,
    "xla": lambda: accelerator.xla,
}
REMATS: Mapping[str, Callable[..., Any]] = {
    "none": lambda: None,
    "dots": lambda: remat.dots,
    "layers": lambda: remat.layers,
    "full": lambda: remat.full,
}
LEARNING_RATES: Mapping[str, Callable[..., Any]] = {
    "constant": lambda: lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda: optax.cosine_decay_schedule,
}
OPTIMIZERS: Mapping[str, Callable[..., Any]] = {
    "adam": _adam,
    "adamw": _adamw,
}


# The average that samples are drawn with, from config.train.ema_decay to step -> decay.
AVERAGES: Mapping[str, Callable[..., Any]] = {
    "warmed_up": lambda: lambda decay: partial(ema.warmed_up_decay, decay=decay),
    "constant": lambda: lambda decay: partial(ema.constant_decay, decay=decay),
    "inverse": lambda inv_gamma=1.0, power=2 / 3: (
        lambda decay: partial(ema.inverse_decay, inv_gamma=inv_gamma, power=power, max_decay=decay)
    ),
    "power": lambda sigma_rel=0.1: lambda decay: partial(ema.power_decay, sigma_rel=sigma_rel),
}


class Diffusion(NamedTuple):
    """What a config's `diffusion` section says, as functions."""

    schedule: Schedule
    parametrisation: parametrisations.Parametrisation
    target: parametrisations.Parametrisation
    weighting: weightings.Weighting
    sample_times: time_sampling.TimeSampler
    time_input: denoisers.TimeInput
    objective: Objective


def diffusion(config: Any) -> Diffusion:
    """The functions that `config.diffusion` names.

    Raises:
      UserError: an unknown name, or a combination that has no finite meaning.
    """
    c = config.diffusion
    schedule = choose(c.schedule, SCHEDULES, key="diffusion.schedule")
    if c.zero_terminal_snr:
        if not schedule.discrete:
            raise UserError(
                f"config.diffusion.zero_terminal_snr = True needs a discrete schedule, not "
                f"{c.schedule!r}: set it to False"
            )
        try:
            schedule = schedules.zero_terminal_snr(schedule)
        except ValueError as error:
            raise UserError(f"config.diffusion.zero_terminal_snr = True: {error}") from None
    if c.log_snr_shift:
        if schedule.discrete:
            raise UserError(
                f"config.diffusion.log_snr_shift = {c.log_snr_shift} needs a continuous schedule, "
                f"not {c.schedule!r}: set it to 0"
            )
        schedule = schedules.shift_log_snr(schedule, c.log_snr_shift)
    parametrisation = choose(c.parametrisation, PARAMETRISATIONS, key="diffusion.parametrisation")
    target = parametrisation
    if c.loss_target != "same":
        target = choose(c.loss_target, PARAMETRISATIONS, key="diffusion.loss_target")
    if parametrisation.needs_signal and float(schedule(schedule.T).signal_scale) == 0:
        raise UserError(
            f"config.diffusion.parametrisation = {c.parametrisation!r} can't be inverted where "
            f"the schedule {c.schedule!r} has no signal: take v, x0 or velocity"
        )
    is_edm = parametrisation.name == "edm"
    weighting = choose(c.weighting, WEIGHTINGS, key="diffusion.weighting")
    key = "diffusion.time_sampling"
    sample_times = choose(c.time_sampling, TIME_SAMPLERS, key=key)
    by_importance = read_choice(c.time_sampling, key=key)[0] == "loss_second_moment"
    chosen = Weighted(
        schedule,
        parametrisation,
        target,
        weighting,
        denoisers.quarter_log_sigma if is_edm else denoisers.scaled_time,
        sample_times,
        by_importance=by_importance,
        learned_weighting=c.learned_weighting,
        self_conditioning=c.self_conditioning,
    )
    objective = build_objective.objective(config, chosen)
    return Diffusion(
        schedule,
        parametrisation,
        target,
        weighting,
        sample_times,
        objective.time_input,
        objective,
    )


def denoiser(network: denoisers.Network, diffusion: Diffusion) -> denoisers.Denoiser:
    """A network with fixed parameters as the denoiser that the config's objective makes of it."""
    make: Callable[..., denoisers.Denoiser] = denoisers.denoiser
    if diffusion.objective.learned_variance:
        make = denoisers.learned_variance_denoiser
    if diffusion.objective.self_conditioned:
        make = partial(self_conditioning.self_conditioned, limit=SHOWN)
    return make(
        network,
        diffusion.schedule,
        parametrisation=diffusion.parametrisation,
        time_input=diffusion.time_input,
    )


def kernels(name: str, *, key: str, sharded: bool = False) -> accelerator.Kernels:
    """What a config's key names: "auto" takes the accelerator where there is one.

    Args:
      name: the value.
      key: the key.
      sharded: whether jit splits the images among devices. It can't look into the accelerator's
        calls, and would gather all images for each.

    Raises:
      UserError: an unknown name, or "onednn" where the accelerator can't be had.
    """
    find = choose(name, KERNELS, key=key)
    if sharded:
        if find is accelerator.onednn:
            raise UserError(
                f"config.{key} = {name!r} can't go with config.parallel.strategy = 'fsdp', which "
                "XLA splits its own kernels for alone: take 'auto' or 'xla'"
            )
        return accelerator.xla()
    try:
        return find()
    except UserError as error:
        raise UserError(f"config.{key} = {name!r}: {error}") from None


def model(
    config: Any,
    *,
    diffusion: Diffusion,
    shape: tuple[int, int, int],
    conditions: Conditions = UNCONDITIONAL,
    map_channels: int = 0,
    ops: Ops = XLA,
) -> UNet:
    """The U-Net of `config.model` for what is diffused.

    Args:
      config: the config.
      diffusion: what is asked of the network.
      shape: of one x_0, (H, W, C), to check the network against.
      conditions: what it is conditioned on.
      map_channels: of the map as the network gets it.
      ops: what computes convolutions and normalisations.

    Raises:
      UserError: an unknown name, or fields that don't fit each other or x_0.
    """
    c = config.model
    texts = conditions.texts
    channels = shape[-1]
    network = UNet(
        channels=c.channels,
        multipliers=tuple(c.multipliers),
        blocks=c.blocks,
        attention_resolutions=tuple(c.attention_resolutions),
        transformer_depth=c.transformer_depth,
        head_channels=c.head_channels,
        dropout=c.dropout,
        num_classes=conditions.num_classes,
        text_width=texts.width if texts else 0,
        text_encoder=texts.module if texts else None,
        map_channels=map_channels,
        fourier=tuple(c.fourier),
        patch=c.patch,
        out_channels=channels * (2 if diffusion.objective.learned_variance else 1),
        levels=diffusion.parametrisation.outputs if diffusion.parametrisation.outputs > 1 else 0,
        block=choose(c.block, BLOCKS, key="model.block"),
        scale_shift=c.scale_shift,
        mix=choose(c.attention, ATTENTIONS, key="model.attention"),
        dtype=choose(c.dtype, DTYPES, key="model.dtype"),
        ops=ops,
        remat=choose(c.remat, REMATS, key="model.remat"),
    )
    try:
        jax.eval_shape(
            network.init,
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, *input_shape(shape, diffusion)), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.float32),
        )
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"config.model: {str(error).splitlines()[0]}") from error
    return network


def input_shape(shape: tuple[int, int, int], diffusion: Diffusion) -> tuple[int, int, int]:
    """What the network is given for an x_0 of a shape: its own estimate may lie beside it."""
    height, width, channels = shape
    return height, width, channels * (2 if diffusion.objective.self_conditioned else 1)


def learning_rate(config: Any) -> optax.Schedule:
    """Linear warm-up from 0 to config.train.learning_rate, then constant or cosine to 0."""
    c = config.train
    decay = choose(c.schedule, LEARNING_RATES, key="train.schedule")
    rest = decay(c.learning_rate, max(1, c.steps - c.warmup_steps))
    if not c.warmup_steps:
        return rest
    warmup = optax.linear_schedule(0.0, c.learning_rate, c.warmup_steps)
    return optax.join_schedules([warmup, rest], [c.warmup_steps])


def optimizer(config: Any) -> optax.GradientTransformation:
    """Gradient clipping by the global norm (0 for none), then Adam or AdamW."""
    make = choose(config.train.optimizer, OPTIMIZERS, key="train.optimizer")
    clip = config.train.grad_clip
    chain = [optax.clip_by_global_norm(clip)] if clip else []
    return optax.chain(*chain, make(learning_rate(config)))


def average_decay(config: Any) -> Callable[[Array], Array]:
    """step -> decay of the average that `config.train.ema` names.

    Raises:
      UserError: an unknown name, or a width or a power out of range.
    """
    c = config.train
    decay = choose(c.ema, AVERAGES, key="train.ema")(c.ema_decay)
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
    """Adam for what an objective learns: weight decay would pull a schedule to another one."""
    return optax.adam(learning_rate(config))


def apply_network(network: UNet, params: Any) -> Callable[[Array, Array, Any], Array]:
    """The network with fixed parameters, as samplers and evaluation ask for it."""
    return lambda x, t, cond: network.apply({"params": params}, x, t, cond)
