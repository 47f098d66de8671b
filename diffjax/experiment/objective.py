"""`config.diffusion`: the training objective."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from diffjax.denoisers import Denoiser
from diffjax.errors import UserError
from diffjax.experiment import alignment, few_step
from diffjax.experiment.few_step import Given
from diffjax.experiment.process import log_snr_range, parametrisation_of
from diffjax.experiment.schema import DIFFUSION
from diffjax.experiment.spec import from_spec, function_from_spec, import_path, parse_spec
from diffjax.losses import learned_schedules, learned_variance, time_sampling, weightings
from diffjax.losses.denoising import diffusion_loss
from diffjax.losses.weightings import Weighting
from diffjax.models.network import Network
from diffjax.parametrisations import Parametrisation
from diffjax.prediction import Prediction
from diffjax.schedules import variance_preserving
from diffjax.training.denoising_objective import DenoisingObjective
from diffjax.training.few_step_objective import Teacher
from diffjax.training.objective import Objective
from diffjax.training.user_loss import InEvaluation, UserLoss
from diffjax.training.vdm_objective import VdmObjective

WEIGHTINGS: Mapping[str, Callable[..., Any]] = {
    "uniform": lambda: weightings.uniform,
    "snr": lambda: weightings.snr,
    "truncated_snr": lambda: weightings.truncated_snr,
    "min_snr": weightings.min_snr,
    "soft_min_snr": weightings.soft_min_snr,
    "p2": weightings.p2,
    "sigmoid": weightings.sigmoid,
    "edm": weightings.edm,
    "logit_normal": weightings.logit_normal,
    "cosmap": lambda: weightings.cosmap,
    "flow_velocity": weightings.flow_velocity,
    "vlb": lambda: weightings.vlb,
}
TIME_SAMPLERS: Mapping[str, Callable[..., Any]] = {
    "uniform": lambda: time_sampling.uniform,
    "low_discrepancy": lambda: time_sampling.low_discrepancy,
    "logit_normal": time_sampling.logit_normal,
    "log_normal": time_sampling.log_normal,
    "mode": time_sampling.mode,
    "cosmap": lambda: time_sampling.cosmap,
    # Uniform before any loss is known, and on held-out images; see `DenoisingObjective`.
    "loss_second_moment": lambda: time_sampling.uniform,
}
SCHEDULE_FORMS: Mapping[str, Callable[..., learned_schedules.LearnedSchedule]] = {
    "fixed": learned_schedules.fixed,
    "scalar": learned_schedules.scalar,
    "network": learned_schedules.network,
}
Make = Callable[[Any, Given], Any]
# Time samplers whose mean is the mean over all times.
_EVEN = ("uniform", "low_discrepancy", "loss_second_moment")
# parameter of a user's loss -> key of config.diffusion that sets it, in addition to `network` and
# `prediction`. Keys without such a parameter must be at their defaults.
_HANDED = {"weighting": "weighting", "sample_times": "time_sampling", "target": "loss_target"}
_ITS_OWN = ("learned_weighting", "self_conditioning", "offset_noise")


def objective(
    config: Any,
    prediction: Prediction,
    network: Network,
    teacher: Teacher | None = None,
    guide: Callable[[Denoiser], Denoiser] | None = None,
    shape: tuple[int, ...] = (1, 1, 1),
) -> Objective:
    """The objective of `config.diffusion`.

    Args:
      config: the config.
      prediction: the section's process and parametrisation.
      network: the network to train.
      teacher: the model of config.diffusion.teacher.
      guide: the guidance of config.diffusion.teacher_guidance.
      shape: of one x_0.

    Raises:
      UserError: an unknown name or path, or incompatible values.
    """
    c = config.diffusion
    chosen = squared_error(config, prediction, network)
    if parse_spec(c.objective, key="diffusion.objective").module:
        _refuse_teacher(config)
        return _own(config, chosen, network)
    make: Make = from_spec(c.objective, OBJECTIVES, key="diffusion.objective")
    made: Objective = make(config, Given(chosen, teacher, guide, shape))
    if chosen.by_importance and (
        isinstance(made, VdmObjective) or not prediction.schedule.discrete
    ):
        raise UserError(
            f"config.diffusion.time_sampling = {c.time_sampling!r} needs a discrete schedule, to "
            "store a loss per step: use 'low_discrepancy'"
        )
    return made


def check(config: Any, prediction: Prediction) -> None:
    """Checks the names of `config.diffusion` without a network.

    Raises:
      UserError: an unknown name, incompatible values, or a path that can't be imported.
    """
    text, key = config.diffusion.objective, "diffusion.objective"
    spec = parse_spec(text, key=key)
    if spec.module:
        import_path(spec, text=text, key=key)
        squared_error(config, prediction, None)  # type: ignore[arg-type]
    else:
        objective(config, prediction, None)  # type: ignore[arg-type]


def squared_error(config: Any, prediction: Prediction, network: Network) -> DenoisingObjective:
    """The squared error with the section's target, weighting and times.

    Raises:
      UserError: an unknown name or path.
    """
    c, key = config.diffusion, "diffusion.time_sampling"
    loss = partial(
        diffusion_loss, target=loss_target(config, prediction), weighting=weighting(config)
    )
    return DenoisingObjective(
        network,
        prediction,
        function_from_spec(c.time_sampling, TIME_SAMPLERS, key=key),
        loss,
        by_importance=parse_spec(c.time_sampling, key=key).path == "loss_second_moment",
        learned_weighting=c.learned_weighting,
        self_conditioning=c.self_conditioning,
        offset_noise=c.offset_noise,
    )


def loss_target(config: Any, prediction: Prediction) -> Parametrisation:
    """`config.diffusion.loss_target`: in which space the squared error is measured."""
    text = config.diffusion.loss_target
    if text == "same":
        return prediction.parametrisation
    return parametrisation_of(text, key="diffusion.loss_target")


def weighting(config: Any) -> Weighting:
    """`config.diffusion.weighting`."""
    made: Weighting = function_from_spec(
        config.diffusion.weighting, WEIGHTINGS, key="diffusion.weighting"
    )
    return made


def _own(config: Any, chosen: DenoisingObjective, network: Network) -> UserLoss:
    """A user-defined loss."""
    c = config.diffusion
    text, key = c.objective, "diffusion.objective"
    make = import_path(parse_spec(text, key=key), text=text, key=key)
    try:
        takes = set(inspect.signature(make).parameters)
    except (ValueError, TypeError):
        takes = set()
    unused = [name for handed, name in _HANDED.items() if handed not in takes]
    for name in (*unused, *_ITS_OWN):
        default = DIFFUSION[f"diffusion.{name}"].default
        if c[name] != default:
            raise UserError(
                f"config.{key} = {text!r} ignores config.diffusion.{name} = {c[name]!r}: leave it "
                f"at {default!r}"
            )
    if chosen.by_importance:
        raise UserError(
            f"config.{key} = {text!r} is incompatible with config.diffusion.time_sampling = "
            f"{c.time_sampling!r}, which needs one of diffjax's own objectives"
        )
    given = {
        "prediction": chosen.prediction,
        "weighting": weighting(config),
        "sample_times": chosen.sample_times,
        "target": loss_target(config, chosen.prediction),
    }
    training, evaluating = (
        from_spec(text, {}, key=key, given={"network": of, **given})
        for of in (network, InEvaluation(network))
    )
    if not callable(getattr(training, "loss", training)):
        raise UserError(
            f"config.{key} = {text!r} returned a {type(training).__name__}: expected a function "
            "loss(params, x_0, cond, key), or an object with that method"
        )
    return UserLoss(training, evaluating)


def _refuse_teacher(config: Any) -> None:
    c = config.diffusion
    for key, none in (("teacher", ""), ("teacher_guidance", "none")):
        if c[key] != none and c.pairs == "none":
            raise UserError(
                f"config.diffusion.objective = {c.objective!r} has no teacher, but "
                f"config.diffusion.{key} = {c[key]!r}: set it to {none!r}"
            )


def _squared_error(config: Any, chosen: DenoisingObjective) -> DenoisingObjective:
    c = config.diffusion
    if loss_target(config, chosen.prediction).name == "categorical":
        raise UserError(
            f"config.diffusion.loss_target = {c.loss_target!r}: logits are not a target of a "
            "squared error: use x0, eps or v"
        )
    if chosen.self_conditioning and chosen.prediction.parametrisation.outputs > 1:
        raise UserError(
            f"config.diffusion.self_conditioning = {c.self_conditioning} is incompatible with "
            f"config.diffusion.parametrisation = {c.parametrisation!r}: set it to 0"
        )
    return chosen


def _with_variance(
    loss: Callable[..., Any], config: Any, chosen: DenoisingObjective
) -> DenoisingObjective:
    c = config.diffusion
    for key, has in (
        ("schedule", not chosen.prediction.schedule.discrete),
        ("parametrisation", chosen.prediction.parametrisation.outputs > 1),
        ("self_conditioning", chosen.self_conditioning > 0),
    ):
        if has:
            raise UserError(
                f"config.diffusion.objective = {c.objective!r} is incompatible with "
                f"config.diffusion.{key} = {c[key]!r}: a learned variance needs a discrete "
                "schedule, a single-valued parametrisation and no self-conditioning"
            )
    return chosen._replace(loss=loss)


def _bound(config: Any, chosen: DenoisingObjective) -> DenoisingObjective:
    _refuse_weights(config)
    return _with_variance(learned_variance.vlb_loss, config, chosen)


def _refuse_weights(config: Any) -> None:
    """Raises UserError for keys that would change the weights of a bound."""
    c = config.diffusion
    name = parse_spec(c.time_sampling, key="diffusion.time_sampling").path
    for key, expected, holds in (
        ("weighting", "'uniform'", c.weighting == "uniform"),
        ("loss_target", "'same'", c.loss_target == "same"),
        ("time_sampling", " or ".join(map(repr, _EVEN)), name in _EVEN),
    ):
        if not holds:
            raise UserError(
                f"config.diffusion.{key} = {c[key]!r}: expected {expected} for the bound "
                f"config.diffusion.objective = {c.objective!r}, which has its own weights"
            )


def _vdm(config: Any, chosen: DenoisingObjective, *, gamma: str, learn_ends: bool) -> VdmObjective:
    c = config.diffusion
    schedule = chosen.prediction.schedule
    _refuse_weights(config)
    if gamma not in SCHEDULE_FORMS:
        raise ValueError(f"gamma must be one of {', '.join(SCHEDULE_FORMS)}, not {gamma!r}")
    if schedule.discrete or getattr(schedule, "geometry", None) is not variance_preserving:
        raise UserError(
            f"config.diffusion.objective = {c.objective!r} needs a continuous, variance preserving "
            f"schedule, not {c.schedule!r}: use linear_log_snr"
        )
    if not math.isfinite(float(schedule.log_snr(0.0)) - float(schedule.log_snr(1.0))):
        raise UserError(
            f"config.diffusion.objective = {c.objective!r} needs a log-SNR that is finite at both "
            f"ends, unlike {c.schedule!r}: use linear_log_snr"
        )
    if c.learned_weighting or c.self_conditioning or c.offset_noise:
        raise UserError(
            f"config.diffusion.objective = {c.objective!r} is a bound, which is incompatible with "
            "learned_weighting, self_conditioning and offset_noise: set them to False and 0"
        )
    form = SCHEDULE_FORMS[gamma](**log_snr_range(schedule))
    return VdmObjective(chosen.network, chosen.prediction, form, learn_ends, chosen.sample_times)


def _make_vdm(gamma: str = "fixed", learn_ends: bool = False) -> Callable[..., VdmObjective]:
    def make(config: Any, chosen: DenoisingObjective) -> VdmObjective:
        try:
            return _vdm(config, chosen, gamma=gamma, learn_ends=learn_ends)
        except ValueError as error:
            raise UserError(
                f"config.diffusion.objective = {config.diffusion.objective!r}: {error}"
            ) from None

    return make


def _make_hybrid(vlb_weight: float = 0.001) -> Callable[..., DenoisingObjective]:
    if vlb_weight < 0:
        raise ValueError(f"vlb_weight must be at least 0, not {vlb_weight}")

    def make(config: Any, chosen: DenoisingObjective) -> DenoisingObjective:
        loss = partial(learned_variance.hybrid_loss, simple_loss=chosen.loss, vlb_weight=vlb_weight)
        return _with_variance(loss, config, chosen)

    return make


def _without_teacher(maker: Callable[..., Any]) -> Callable[..., Make]:
    @functools.wraps(maker)
    def of_options(**options: Any) -> Make:
        make = maker(**options)

        def made(config: Any, given: Given) -> Any:
            _refuse_teacher(config)
            return make(config, given.chosen)

        return made

    return of_options


@functools.wraps(alignment.aligned)
def _make_aligned(**options: Any) -> Make:
    make = alignment.aligned(**options)

    def made(config: Any, given: Given) -> Any:
        _refuse_teacher(config)
        return make(config, _squared_error(config, given.chosen), given.shape)

    return made


OBJECTIVES: Mapping[str, Callable[..., Make]] = {
    "squared_error": _without_teacher(lambda: _squared_error),
    "hybrid": _without_teacher(_make_hybrid),
    "vlb": _without_teacher(lambda: _bound),
    "vdm": _without_teacher(_make_vdm),
    "aligned": _make_aligned,
    **few_step.OBJECTIVES,
}
