"""`config.diffusion`: the noise process and what the network predicts.

This is all that a sampler needs to know about training; the loss is in `objective`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffjax import categorical, denoisers, parametrisations, schedules
from diffjax.errors import UserError
from diffjax.experiment.spec import from_spec, parse_spec
from diffjax.prediction import Prediction
from diffjax.schedules import Schedule
from diffjax.stable_diffusion.scheduler import step_number

# Each table maps a name to a maker, whose parameters are the arguments in a config string.
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
        schedules.vp_sde,
        schedules.polynomial,
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
    "average_velocity": lambda: parametrisations.average_velocity,
    "average_x0": parametrisations.average_x0,
    "edm": parametrisations.edm,
    "categorical": categorical.categorical,
}
TIME_INPUTS: Mapping[str, denoisers.TimeInput] = {
    "scaled": denoisers.scaled_time,
    "unit": denoisers.unit_time,
    "log_sigma": denoisers.quarter_log_sigma,
    "step": step_number,
}
# Objectives whose network also returns a variance.
WITH_VARIANCE = ("hybrid", "vlb")
# Objectives that differentiate the network forwards, in x_t and t.
WITH_TANGENT = ("mean_flow", "continuous_consistency")


def diffusion(config: Any) -> Prediction:
    """The schedule and parametrisation of `config.diffusion`.

    Raises:
      UserError: an unknown name, or a parametrisation that the schedule makes singular.
    """
    c = config.diffusion
    schedule = _schedule(c)
    parametrisation = parametrisation_of(c.parametrisation, key="diffusion.parametrisation")
    if parametrisation.needs_signal and float(schedule(schedule.T).signal_scale) == 0:
        raise UserError(
            f"config.diffusion.parametrisation = {c.parametrisation!r} can't be inverted where "
            f"the schedule {c.schedule!r} has no signal: use v, x0 or velocity"
        )
    if parametrisation.spans and not is_straight(schedule):
        raise UserError(
            f"config.diffusion.parametrisation = {c.parametrisation!r} is of straight paths, not "
            f"of the schedule {c.schedule!r}: use rectified_flow"
        )
    objective = parse_spec(c.objective, key="diffusion.objective").path
    return Prediction(
        schedule,
        parametrisation,
        _time_input(c, schedule, parametrisation, objective),
        learned_variance=objective in WITH_VARIANCE,
        self_conditioned=c.self_conditioning > 0,
    )


def takes_tangent(config: Any) -> bool:
    """Whether the objective differentiates the network forwards."""
    return parse_spec(config.diffusion.objective, key="diffusion.objective").path in WITH_TANGENT


def parametrisation_of(text: str, *, key: str) -> parametrisations.Parametrisation:
    """The parametrisation of a config string.

    Raises:
      UserError: an unknown name or path, or an object of another type.
    """
    found = from_spec(text, PARAMETRISATIONS, key=key)
    if not isinstance(found, parametrisations.Parametrisation):
        raise UserError(
            f"config.{key} = {text!r} is a {type(found).__name__}: expected a "
            "diffjax.parametrisations.Parametrisation"
        )
    return found


def log_snr_range(schedule: Schedule) -> dict[str, float]:
    """The log-SNR at both ends of a continuous schedule, as keyword arguments of its maker."""
    log_snr_max, log_snr_min = (float(schedule.log_snr(t)) for t in (0.0, 1.0))
    return {"log_snr_min": log_snr_min, "log_snr_max": log_snr_max}


def _schedule(c: Any) -> Schedule:
    schedule = from_spec(c.schedule, SCHEDULES, key="diffusion.schedule")
    if not (callable(schedule) and hasattr(schedule, "log_snr") and hasattr(schedule, "discrete")):
        raise UserError(
            f"config.diffusion.schedule = {c.schedule!r} is a {type(schedule).__name__}: expected "
            "a diffjax.schedules.DiscreteSchedule or ContinuousSchedule, or a maker of one"
        )
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
    return schedule


def is_straight(schedule: Schedule) -> bool:
    """Whether x_t = (1 - t) x_0 + t eps."""
    times = np.array([0.1, 0.5, 0.8])
    return not schedule.discrete and np.allclose(schedule(times), [1 - times, times])


def _time_input(
    c: Any, schedule: Schedule, parametrisation: parametrisations.Parametrisation, objective: str
) -> denoisers.TimeInput:
    if c.time_input == "step" and not schedule.discrete:
        raise UserError(
            f"config.diffusion.time_input = 'step' counts the steps of a discrete schedule, not "
            f"{c.schedule!r}: use scaled"
        )
    if c.time_input != "auto":
        return TIME_INPUTS[c.time_input]
    if objective == "vdm" and not schedule.discrete:
        return denoisers.scaled_log_snr(**log_snr_range(schedule))
    if parametrisation.name == "edm":
        return denoisers.quarter_log_sigma
    return denoisers.unit_time if parametrisation.spans else denoisers.scaled_time
