"""How a model is sampled and edited: the strings of a config's `sample` and `edit` sections.

As in `build`, a choice is resolved here and nowhere else.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffjax import denoisers, grids, guidance, parametrisations, samplers, schedules, thresholding
from diffjax.errors import UserError
from diffjax.models.condition import Condition
from diffjax.schedules import Array, Schedule
from diffjax.training import edit_tasks
from diffjax.training.choices import choose, read_choice, with_options

SAMPLERS: Mapping[str, Callable[..., Any]] = {
    sampler.__name__: with_options(sampler)
    for sampler in (
        samplers.ancestral, samplers.ddim, samplers.euler_ancestral, samplers.euler, samplers.heun,
        samplers.dpm_solver_pp_2m, samplers.dpm_solver_pp_3m, samplers.sde_dpm_solver_pp,
        samplers.deis, samplers.lms, samplers.ipndm, samplers.plms, samplers.pndm, samplers.unipc,
        samplers.dpm_solver_2, samplers.dpm_solver_3, samplers.dpm_solver_pp_2s, samplers.dpm2,
        samplers.midpoint, samplers.rk4, samplers.edm_stochastic, samplers.predictor_corrector,
        samplers.restart, samplers.adaptive,
    )
}  # fmt: skip
GRIDS: Mapping[str, Callable[..., Any]] = {
    grid.__name__: with_options(grid)
    for grid in (
        grids.leading, grids.trailing, grids.linspace, grids.karras, grids.exponential,
        grids.uniform_log_snr, grids.beta, grids.flow_shift,
    )
}  # fmt: skip
THRESHOLDS: Mapping[str, Callable[..., Any]] = {
    "none": lambda: lambda denoise, schedule: denoise,
    "clip": lambda low=-1.0, high=1.0: partial(thresholding.clip_x0, low=low, high=high),
    "dynamic": lambda percentile=99.5: partial(
        thresholding.dynamic_threshold, percentile=percentile
    ),
}


class Model(NamedTuple):
    """What guidance is made of.

    Attributes:
      denoise: the model.
      schedule: its schedule.
      conditional: whether it has a condition to leave out.
      num_classes: 0 for one without classes.
      null: condition -> the same tree that stands for none, or for the negative prompt.
      attention_blocks: names of the network's blocks with attention.
      variant: denoiser with the same parameters of a network with other fields.
      weak: a weaker model, where the config names one.
    """

    denoise: denoisers.Denoiser
    schedule: Schedule
    conditional: bool
    num_classes: int
    null: guidance.Null
    attention_blocks: tuple[str, ...]
    variant: Callable[..., denoisers.Denoiser]
    weak: denoisers.Denoiser | None


Guide = Callable[[Model], denoisers.Denoiser]


def _of_conditions(function: Callable[..., denoisers.Denoiser]) -> Callable[..., Guide]:
    """A maker of guidance that compares a condition with none."""
    make = with_options(function)

    def of_options(**options: Any) -> Guide:
        for name in ("scale", "papers_scale", "rescale", "parallel", "norm_limit"):
            _check_number(name, options.get(name))
        guide = make(**options)
        guide(lambda x_t, t, cond=None: None, schedules.cosine(10))  # what the options are worth

        def guided(model: Model) -> denoisers.Denoiser:
            if not model.conditional:
                raise ValueError(
                    f"{function.__name__} compares a condition with none, but the model is not "
                    "class-conditional and takes no text or map: take "
                    "config.sample.guidance='none', or train with "
                    "config.model.class_conditional=True or config.condition.text"
                )
            return guide(model.denoise, model.schedule, null=model.null)

        return guided

    of_options.__signature__ = inspect.signature(make)  # type: ignore[attr-defined]
    return of_options


def _check_number(name: str, value: Any) -> None:
    """Raises ValueError for what is neither a number nor None, "not given".

    A limit may be infinite, which is none.
    """
    if value is None:
        return
    number = type(value) in (int, float)
    if not (number and (abs(value) < math.inf or (name == "norm_limit" and value == math.inf))):
        raise ValueError(f"{name} must be a number, not {value!r}")


def _compose(*, labels: tuple[int, ...], weights: tuple[float, ...]) -> Guide:
    """`guidance.compose` of classes, whatever config.sample.labels says."""
    if not labels or len(labels) != len(weights):
        raise ValueError(f"labels {labels} and weights {weights} must be as many, and at least one")
    if any(type(label) is not int for label in labels):
        raise ValueError(f"labels must be whole numbers, not {labels}")
    for weight in weights:
        _check_number("a weight", weight)

    def guide(model: Model) -> denoisers.Denoiser:
        if not model.num_classes:
            raise ValueError(
                "compose guides by classes, but the model is not class-conditional: take "
                "config.sample.guidance='none', or train with config.model.class_conditional=True"
            )
        bad = [label for label in labels if not 0 <= label < model.num_classes]
        if bad:
            raise ValueError(f"compose has the label {bad[0]}: take of 0..{model.num_classes - 1}")

        def guided(x_t: Array, t: Array, cond: Any = None) -> parametrisations.Estimates:
            given = cond if isinstance(cond, Condition) else Condition()
            conditions = [
                (weight, given._replace(label=jnp.full(len(x_t), label)))
                for weight, label in zip(weights, labels, strict=True)
            ]
            return guidance.compose(model.denoise, conditions=conditions, null=model.null)(
                x_t, t, cond
            )

        return guided

    return guide


def _autoguidance(*, workdir: str, scale: float, checkpoint: str = "latest") -> Guide:
    """`guidance.autoguidance` by the model of another workdir, or by an earlier checkpoint.

    `experiment.resolve` reads that model, before anything is sampled.
    """
    if not isinstance(workdir, str):
        raise ValueError(f"workdir must be a text, not {workdir!r}")
    _check_number("scale", scale)

    def guide(model: Model) -> denoisers.Denoiser:
        assert model.weak is not None
        return guidance.autoguidance(model.denoise, model.weak, scale=scale)

    return guide


def _perturbed_attention(
    *,
    scale: float | None = None,
    papers_scale: float | None = None,
    blocks: tuple[str, ...] = ("middle_0",),
) -> Guide:
    """`guidance.perturbed_attention` by the network without attention in some blocks."""
    _check_number("scale", scale)
    _check_number("papers_scale", papers_scale)
    if not isinstance(blocks, tuple):
        raise ValueError(f"blocks must be names such as ('middle_0',), not {blocks!r}")
    if (scale is None) == (papers_scale is None):
        raise ValueError("give one of scale (1: no guidance) and papers_scale (0: no guidance)")

    def guide(model: Model) -> denoisers.Denoiser:
        bad = [name for name in blocks if name not in model.attention_blocks]
        if bad or not blocks:
            raise ValueError(
                f"perturbed_attention needs blocks with attention, of {model.attention_blocks}, "
                f"not {blocks}"
            )
        return guidance.perturbed_attention(
            model.denoise, model.variant(perturbed=blocks), scale=scale, papers_scale=papers_scale
        )

    return guide


GUIDANCE: Mapping[str, Callable[..., Guide]] = {
    "none": lambda: lambda model: model.denoise,
    "classifier_free": _of_conditions(guidance.classifier_free),
    "adaptive_projected": _of_conditions(guidance.adaptive_projected),
    "compose": _compose,
    "autoguidance": _autoguidance,
    "perturbed_attention": _perturbed_attention,
}
EDITS: Mapping[str, Callable[..., edit_tasks.Task]] = {
    task.__name__: task
    for task in (
        edit_tasks.inpaint, edit_tasks.repaint, edit_tasks.vary, edit_tasks.invert,
        edit_tasks.interpolate, edit_tasks.super_resolution, edit_tasks.deblur,
        edit_tasks.colourise,
    )
}  # fmt: skip


class Sampling(NamedTuple):
    """What a config's `sample` section says, as functions.

    `uses_labels` is whether the guidance looks at a sample's label; `compose` names its own.
    `uses_null` is whether it compares with no condition, or a negative prompt in its place.
    """

    sampler: Callable[..., samplers.Samples]
    grid: grids.Grid
    guide: Guide
    uses_labels: bool
    uses_null: bool
    threshold: Callable[[denoisers.Denoiser, Schedule], denoisers.Denoiser]


def sampling(config: Any, schedule: Schedule) -> Sampling:
    """The sampler, grid, guidance and thresholding that `config.sample` names.

    Raises:
      UserError: an unknown name, or a number of steps that the schedule does not have.
    """
    c = config.sample
    make_grid = choose(c.grid, GRIDS, key="sample.grid")
    try:
        grid = make_grid(schedule, c.steps)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"config.sample.grid = {c.grid!r}, config.sample.steps = {c.steps}: {error}"
        ) from None
    sampler = choose(c.sampler, SAMPLERS, key="sample.sampler")
    if "schedule" in inspect.signature(sampler).parameters:
        sampler = partial(sampler, schedule=schedule)
    guide = choose(c.guidance, GUIDANCE, key="sample.guidance")
    guidance_name = read_choice(c.guidance, key="sample.guidance")[0]
    uses_labels = guidance_name != "compose"
    if c.labels and not uses_labels:
        raise UserError(
            f"config.sample.labels = {tuple(c.labels)} but config.sample.guidance = "
            f"{c.guidance!r} names its own: leave it empty"
        )
    return Sampling(
        sampler,
        grid,
        guide,
        uses_labels,
        guidance_name in ("classifier_free", "adaptive_projected", "compose"),
        choose(c.threshold, THRESHOLDS, key="sample.threshold"),
    )


def with_scale(text: str, scale: float, *, key: str) -> str:
    """A choice of guidance with another scale in place of its own.

    Raises:
      UserError: the text is no choice, or one without a scale.

    >>> with_scale("classifier_free(papers_scale=2, rescale=0.7)", 1.5, key="sample.guidance")
    'classifier_free(rescale=0.7, scale=1.5)'
    """
    name, arguments = read_choice(text, key=key)
    if name in ("none", "compose"):
        raise UserError(
            f"config.{key} = {text!r} has no scale to vary: take classifier_free(scale=1.5), say, "
            "or leave config.evaluate.scales empty"
        )
    arguments = {k: v for k, v in arguments.items() if k != "papers_scale"} | {"scale": scale}
    return f"{name}({', '.join(f'{k}={_literal(v)}' for k, v in arguments.items())})"


def _literal(value: Any) -> str:
    """What `read_choice` reads as the value; Python has no literal for infinity."""
    if isinstance(value, tuple):
        return f"({''.join(_literal(v) + ',' for v in value)})"
    return repr(value).replace("inf", "1e999") if isinstance(value, float) else repr(value)
