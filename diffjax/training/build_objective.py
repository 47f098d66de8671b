"""A config's `diffusion.objective` becomes an `Objective`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from diffjax import denoisers, learned_schedules, learned_variance
from diffjax.errors import UserError
from diffjax.schedules import variance_preserving
from diffjax.training.choices import choose, read_choice
from diffjax.training.objective import Vdm, Weighted

SCHEDULE_FORMS: Mapping[str, Callable[..., learned_schedules.LearnedSchedule]] = {
    "fixed": learned_schedules.fixed,
    "scalar": learned_schedules.scalar,
    "network": learned_schedules.network,
}
Make = Callable[[Any, Weighted], Weighted | Vdm]
# Times that a mean over is a mean over all times.
_EVEN = ("uniform", "low_discrepancy", "loss_second_moment")


def objective(config: Any, chosen: Weighted) -> Weighted | Vdm:
    """The objective that `config.diffusion` names.

    Args:
      config: the config.
      chosen: what else the section says, as the plain squared error.

    Raises:
      UserError: an unknown name, or parts that do not go together.
    """
    make: Make = choose(config.diffusion.objective, OBJECTIVES, key="diffusion.objective")
    made = make(config, chosen)
    c = config.diffusion
    if chosen.by_importance and (isinstance(made, Vdm) or not chosen.schedule.discrete):
        raise UserError(
            f"config.diffusion.time_sampling = {c.time_sampling!r} needs a discrete schedule, with "
            "steps to remember losses of: take 'low_discrepancy'"
        )
    return made


def _squared_error(config: Any, chosen: Weighted) -> Weighted:
    c = config.diffusion
    if chosen.target.name == "categorical":
        raise UserError(
            f"config.diffusion.loss_target = {c.loss_target!r}: logits are no target of a squared "
            "error: take x0, eps or v"
        )
    if chosen.self_conditioned and chosen.parametrisation.outputs > 1:
        raise UserError(
            f"config.diffusion.self_conditioning = {c.self_conditioning} can't go with "
            f"config.diffusion.parametrisation = {c.parametrisation!r}: set it to 0"
        )
    return chosen


def _with_variance(loss: Callable[..., Any], config: Any, chosen: Weighted) -> Weighted:
    c = config.diffusion
    for key, has in (
        ("schedule", not chosen.schedule.discrete),
        ("parametrisation", chosen.parametrisation.outputs > 1),
        ("self_conditioning", chosen.self_conditioned),
    ):
        if has:
            raise UserError(
                f"config.diffusion.objective = {c.objective!r} can't go with "
                f"config.diffusion.{key} = {c[key]!r}: a learned variance needs a discrete "
                "schedule, and a network that returns its value and variance from x_t alone"
            )
    return chosen._replace(loss=loss, learned_variance=True)


def _bound(config: Any, chosen: Weighted) -> Weighted:
    _refuse_weights(config)
    return _with_variance(learned_variance.vlb_loss, config, chosen)


def _refuse_weights(config: Any) -> None:
    """A bound weighs its errors itself: what would weigh them otherwise is refused."""
    c = config.diffusion
    name = read_choice(c.time_sampling, key="diffusion.time_sampling")[0]
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


def _vdm(config: Any, chosen: Weighted, *, gamma: str, learn_ends: bool) -> Vdm:
    c = config.diffusion
    schedule = chosen.schedule
    _refuse_weights(config)
    if gamma not in SCHEDULE_FORMS:
        raise ValueError(f"gamma must be one of {', '.join(SCHEDULE_FORMS)}, not {gamma!r}")
    if schedule.discrete or getattr(schedule, "geometry", None) is not variance_preserving:
        raise UserError(
            f"config.diffusion.objective = {c.objective!r} needs a continuous, variance preserving "
            f"schedule, not {c.schedule!r}: take linear_log_snr"
        )
    if c.learned_weighting or c.self_conditioning or c.offset_noise:
        raise UserError(
            f"config.diffusion.objective = {c.objective!r} is a bound, which leaves no room for "
            "learned_weighting, self_conditioning or offset_noise: set them to False and 0"
        )
    log_snr_max, log_snr_min = (float(schedule.log_snr(t)) for t in (0.0, 1.0))
    ends = {"log_snr_min": log_snr_min, "log_snr_max": log_snr_max}
    return Vdm(
        schedule,
        SCHEDULE_FORMS[gamma](**ends),
        learn_ends,
        chosen.parametrisation,
        denoisers.scaled_log_snr(**ends),
        chosen.sample_times,
    )


def _make_vdm(gamma: str = "fixed", learn_ends: bool = False) -> Make:
    def make(config: Any, chosen: Weighted) -> Vdm:
        try:
            return _vdm(config, chosen, gamma=gamma, learn_ends=learn_ends)
        except ValueError as error:
            raise UserError(
                f"config.diffusion.objective = {config.diffusion.objective!r}: {error}"
            ) from None

    return make


def _make_hybrid(vlb_weight: float = 0.001) -> Make:
    if vlb_weight < 0:
        raise ValueError(f"vlb_weight must be at least 0, not {vlb_weight}")
    return partial(_with_variance, partial(learned_variance.hybrid_loss, vlb_weight=vlb_weight))


OBJECTIVES: Mapping[str, Callable[..., Make]] = {
    "squared_error": lambda: _squared_error,
    "hybrid": _make_hybrid,
    "vlb": lambda: _bound,
    "vdm": _make_vdm,
}
