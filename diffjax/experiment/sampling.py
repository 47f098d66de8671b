"""`config.sample` and `config.edit`: sampler, grid, guidance, thresholding and task."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from diffjax import denoisers, grids, parametrisations, schedules
from diffjax.conditioning.conditions import UNCONDITIONAL, Conditions
from diffjax.errors import UserError
from diffjax.experiment import prompts
from diffjax.experiment.folder_sampling import control_images, image_prompts
from diffjax.experiment.image_files import read_map_images
from diffjax.experiment.spec import from_spec, function_from_spec, parse_spec, with_options
from diffjax.inference import edit_tasks, unclip
from diffjax.inference.generator import Generator
from diffjax.inference.sample_conditions import Choice, Embed, Examples, SampleConditions
from diffjax.inference.sampling import GuidanceModel, Guide, OtherModel, Sampling
from diffjax.latent.space import DiffusionSpace
from diffjax.models.condition import Condition
from diffjax.models.network import Network
from diffjax.prediction import Prediction
from diffjax.sampling import guidance, memory, samplers, thresholding
from diffjax.schedules import Schedule
from diffjax.types import Array, Times

SAMPLERS: Mapping[str, Callable[..., Any]] = {
    sampler.__name__: with_options(sampler)
    for sampler in (
        samplers.ancestral, samplers.ddim, samplers.euler_ancestral, samplers.euler, samplers.heun,
        samplers.dpm_solver_2m, samplers.dpm_solver_3m, samplers.dpm_solver_pp_2m,
        samplers.dpm_solver_pp_3m, samplers.sde_dpm_solver_pp, samplers.deis, samplers.lms,
        samplers.ipndm, samplers.plms, samplers.pndm, samplers.unipc, samplers.sa_solver,
        samplers.dpm_solver_2, samplers.dpm_solver_3, samplers.dpm_solver_pp_2s,
        samplers.dpm_solver_pp_3s, samplers.dpm2, samplers.midpoint, samplers.heun3, samplers.rk4,
        samplers.edm_stochastic, samplers.euler_churn, samplers.dpm2_churn, samplers.dpm2_ancestral,
        samplers.dpm_solver_pp_2s_ancestral, samplers.predictor_corrector, samplers.restart,
        samplers.adaptive, samplers.dpm_solver_adaptive, samplers.consistency, samplers.flow_map,
    )
}  # fmt: skip
GRIDS: Mapping[str, Callable[..., Any]] = {
    grid.__name__: with_options(grid)
    for grid in (
        grids.leading, grids.trailing, grids.linspace, grids.karras, grids.exponential,
        grids.polyexponential, grids.sections, grids.uniform_log_snr, grids.beta, grids.flow_shift,
        grids.at,
    )
}  # fmt: skip
THRESHOLDS: Mapping[str, Callable[..., Any]] = {
    "none": lambda: lambda denoise, schedule: denoise,
    "clip": lambda low=-1.0, high=1.0: partial(thresholding.clip_x0, low=low, high=high),
    "dynamic": lambda percentile=99.5, cap=math.inf: partial(
        thresholding.dynamic_threshold, percentile=percentile, cap=cap
    ),
}


def _of_conditions(function: Callable[..., denoisers.Denoiser]) -> Callable[..., Guide]:
    """A maker of guidance that compares a conditional with an unconditional prediction."""
    make = with_options(function)

    def of_options(**options: Any) -> Guide:
        for name in ("scale", "papers_scale", "rescale", "parallel", "norm_limit", "momentum"):
            _check_number(name, options.get(name))
        guide = make(**options)
        guide(lambda x_t, t, cond=None: None, schedules.cosine(10))  # validates the options now

        def guided(model: GuidanceModel) -> denoisers.Denoiser:
            if not model.conditional:
                raise ValueError(
                    f"{function.__name__} needs a conditional model, but this one is not "
                    "class-conditional and takes no text, nor a map that is dropped: use "
                    "config.sample.guidance='none', or train with "
                    "config.model.class_conditional=True or config.condition.text"
                )
            return guide(model.denoise, model.schedule, null=model.null)

        # What hands something on from step to step needs a sampler that carries it.
        guided.has_memory = bool(  # type: ignore[attr-defined]
            options.get("momentum") or options.get("zero_steps", _default(function, "zero_steps"))
        )
        return guided

    of_options.__signature__ = inspect.signature(make)  # type: ignore[attr-defined]
    return of_options


def _default(function: Callable[..., Any], name: str) -> Any:
    """A parameter's default; None where there is no such parameter."""
    parameter = inspect.signature(function).parameters.get(name)
    return parameter and parameter.default


def _check_number(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a finite number or None; norm_limit may be infinite."""
    if value is None:
        return
    number = type(value) in (int, float)
    if not (number and (abs(value) < math.inf or (name == "norm_limit" and value == math.inf))):
        raise ValueError(f"{name} must be a number, not {value!r}")


def _compose(*, labels: tuple[int, ...], weights: tuple[float, ...]) -> Guide:
    """`guidance.compose` of classes; ignores config.sample.labels."""
    if not labels or len(labels) != len(weights):
        raise ValueError(f"labels {labels} and weights {weights} must have the same length >= 1")
    if any(type(label) is not int for label in labels):
        raise ValueError(f"labels must be whole numbers, not {labels}")
    for weight in weights:
        _check_number("a weight", weight)

    def guide(model: GuidanceModel) -> denoisers.Denoiser:
        if not model.num_classes:
            raise ValueError(
                "compose guides by classes, but the model is not class-conditional: use "
                "config.sample.guidance='none', or train with config.model.class_conditional=True"
            )
        bad = [label for label in labels if not 0 <= label < model.num_classes]
        if bad:
            raise ValueError(f"compose has the label {bad[0]}: expected 0..{model.num_classes - 1}")

        def guided(x_t: Array, t: Times, cond: Any = None) -> parametrisations.Estimates:
            base = cond if isinstance(cond, Condition) else Condition()
            conditions = [
                (weight, base._replace(label=jnp.full(len(x_t), label)))
                for weight, label in zip(weights, labels, strict=True)
            ]
            return guidance.compose(model.denoise, conditions=conditions, null=model.null)(
                x_t, t, cond
            )

        return guided

    return guide


def _autoguidance(*, workdir: str, scale: float, checkpoint: str = "latest") -> Guide:
    """`guidance.autoguidance` by the model of another workdir, or by an earlier checkpoint.

    `other_model.with_weak` reads that model before sampling.
    """
    if not isinstance(workdir, str):
        raise ValueError(f"workdir must be a string, not {workdir!r}")
    _check_number("scale", scale)

    def guide(model: GuidanceModel) -> denoisers.Denoiser:
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

    def guide(model: GuidanceModel) -> denoisers.Denoiser:
        network: Any = model.network
        if not (hasattr(network, "attention_blocks") and hasattr(network, "perturbed")):
            raise ValueError(
                "perturbed_attention needs a network with attention_blocks(shape) and "
                "perturbed(blocks), such as the U-Net: use config.sample.guidance='none'"
            )
        known = network.attention_blocks(model.shape)
        if not blocks or set(blocks) - set(known):
            raise ValueError(
                f"perturbed_attention needs blocks with attention, some of {known}, not {blocks}"
            )
        perturbed = model.denoiser_of(network.perturbed(blocks))
        return guidance.perturbed_attention(
            model.denoise, perturbed, scale=scale, papers_scale=papers_scale
        )

    return guide


GUIDANCE: Mapping[str, Callable[..., Guide]] = {
    "none": lambda: lambda model: model.denoise,
    "classifier_free": _of_conditions(guidance.classifier_free),
    "adaptive_projected": _of_conditions(guidance.adaptive_projected),
    "tangential": _of_conditions(guidance.tangential),
    "cfg_zero_star": _of_conditions(guidance.cfg_zero_star),
    "compose": _compose,
    "autoguidance": _autoguidance,
    "perturbed_attention": _perturbed_attention,
}
# The tasks of --mode=edit; see `inference.edit_tasks` and `inference.unclip`.
EDITS: Mapping[str, Callable[..., edit_tasks.Task]] = {
    task.__name__: task
    for task in (
        edit_tasks.inpaint, edit_tasks.repaint, edit_tasks.vary, edit_tasks.invert,
        edit_tasks.interpolate, edit_tasks.super_resolution, edit_tasks.upscale,
        edit_tasks.deblur, edit_tasks.colourise, *unclip.TASKS.values(),
    )
}  # fmt: skip


def sampling(config: Any, schedule: Schedule) -> Sampling:
    """The sampler, grid, guidance and thresholding of `config.sample`.

    Raises:
      UserError: an unknown name, or a number of steps that the schedule does not have.
    """
    c = config.sample
    make_grid = function_from_spec(c.grid, GRIDS, key="sample.grid")
    try:
        grid = make_grid(schedule, c.steps)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"config.sample.grid = {c.grid!r}, config.sample.steps = {c.steps}: {error}"
        ) from None
    if not isinstance(grid, grids.Grid):
        raise UserError(
            f"config.sample.grid = {c.grid!r} returned a {type(grid).__name__}: expected a "
            "function (schedule, steps) that returns a diffjax.grids.Grid"
        )
    sampler = function_from_spec(c.sampler, SAMPLERS, key="sample.sampler")
    jumps = next(iter(inspect.signature(sampler).parameters), "") == "jump"
    if "schedule" in inspect.signature(sampler).parameters:
        sampler = partial(sampler, schedule=schedule)
    spec = parse_spec(c.guidance, key="sample.guidance")
    uses_labels = spec.path != "compose"
    if c.labels and not uses_labels:
        raise UserError(
            f"config.sample.labels = {tuple(c.labels)} but config.sample.guidance = "
            f"{c.guidance!r} has its own labels: leave it empty"
        )
    guide, uses_null = guide_of(c.guidance, key="sample.guidance")
    for name in ("guidance", "threshold"):
        if jumps and c[name] != "none":
            raise UserError(
                f"config.sample.sampler = {c.sampler!r} takes a flow map, whose steps have no "
                f"estimate of x_0: set config.sample.{name} to 'none', not {c[name]!r}"
            )
    if getattr(guide, "has_memory", False):
        sampler = memory.carried(sampler)
    return Sampling(
        sampler,
        grid,
        guide,
        function_from_spec(c.threshold, THRESHOLDS, key="sample.threshold"),
        c.guidance,
        uses_labels,
        uses_null,
        jumps,
    )


def guide_of(text: str, *, key: str) -> tuple[Guide, bool]:
    """The guidance of a config string, and whether it uses the unconditional prediction.

    Raises:
      UserError: an unknown name or path, or invalid options.
    """
    spec = parse_spec(text, key=key)
    if not spec.module:
        guide = from_spec(text, GUIDANCE, key=key)
        return guide, spec.name in (
            "classifier_free", "adaptive_projected", "tangential", "cfg_zero_star", "compose"
        )  # fmt: skip
    function = function_from_spec(text, {}, key=key)
    takes_null = "null" in inspect.signature(function).parameters

    def own(model: GuidanceModel) -> denoisers.Denoiser:
        options = {"null": model.null} if takes_null else {}
        return function(model.denoise, model.schedule, **options)

    return own, takes_null


def generator(
    config: Any,
    network: Network,
    diffusion: Prediction,
    *,
    space: DiffusionSpace,
    conditions: Conditions = UNCONDITIONAL,
    examples: Callable[[], Examples] | None = None,
    weak: OtherModel | None = None,
    embed: Embed | None = None,
) -> Generator:
    """The generator of `config.sample`; nothing is compiled yet.

    Args:
      config: the config.
      network, diffusion, space, conditions: the resolved model.
      examples: called if the config leaves prompts or maps open.
      weak: the weaker model, if config.sample.guidance needs one.
      embed: texts -> image embeddings, if config.sample.prior names a prior.

    Raises:
      UserError: an unknown sampler, grid, guidance or threshold, or a label, prompt or map that
        the model does not take.
    """
    c = config.sample
    resolved = sampling(config, diffusion.schedule)
    if resolved.jumps and not diffusion.parametrisation.spans:
        raise UserError(
            f"config.sample.sampler = {c.sampler!r} needs a model that was trained as a flow map, "
            "config.diffusion.parametrisation = 'average_velocity': use another sampler, such as "
            "ddim or consistency"
        )
    texts = prompts.read(c.prompt, key="sample.prompt")
    if texts and not (conditions.texts or embed):
        raise UserError(
            f"config.sample.prompt = {c.prompt!r} but the model takes no text: leave it empty"
        )
    if c.negative_prompt and not conditions.texts:
        raise UserError(
            f"config.sample.negative_prompt = {c.negative_prompt!r} but the model takes no text: "
            "leave it empty"
        )
    if c.negative_prompt and not resolved.uses_null:
        raise UserError(
            f"config.sample.negative_prompt = {c.negative_prompt!r} but config.sample.guidance = "
            f"{c.guidance!r} ignores it: use for example classifier_free(scale=3.0)"
        )
    control = control_images(config, conditions.controls, space.image_shape)
    maps = read_map_images(c.maps, space, key="sample.maps")
    of_samples = SampleConditions(
        space,
        conditions,
        Choice(
            tuple(c.labels),
            texts,
            c.negative_prompt,
            maps,
            control=control,
            image_prompts=image_prompts(config, conditions),
        ),
        uses_labels=resolved.uses_labels,
        examples=examples,
        level=c.augmentation_level,
        seed=c.seed,
        embed=embed,
    )
    return Generator(
        network,
        diffusion,
        resolved,
        space=space,
        conditions=of_samples,
        seed=c.seed,
        batch_size=c.batch_size,
        weak=weak,
    )


def with_scale(text: str, scale: float, *, key: str) -> str:
    """A guidance string with its scale replaced.

    Raises:
      UserError: the string is invalid, or the guidance has no scale.

    >>> with_scale("classifier_free(papers_scale=2, rescale=0.7)", 1.5, key="sample.guidance")
    'classifier_free(rescale=0.7, scale=1.5)'
    """
    spec = parse_spec(text, key=key)
    name, arguments = spec.path, spec.arguments
    if name in ("none", "compose"):
        raise UserError(
            f"config.{key} = {text!r} has no scale to vary: use for example "
            "classifier_free(scale=1.5), or leave config.evaluate.scales empty"
        )
    arguments = {k: v for k, v in arguments.items() if k != "papers_scale"} | {"scale": scale}
    return f"{name}({', '.join(f'{k}={_literal(v)}' for k, v in arguments.items())})"


def _literal(value: Any) -> str:
    """A literal that `parse_spec` reads as the value; Python has none for infinity."""
    if isinstance(value, tuple):
        return f"({''.join(_literal(v) + ',' for v in value)})"
    return repr(value).replace("inf", "1e999") if isinstance(value, float) else repr(value)
