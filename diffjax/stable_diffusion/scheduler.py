"""A folder's scheduler_config.json as diffjax's schedule, parametrisation, sampler and grid.

diffusers counts its times n = 0..T-1 from the first noisy step; here t = n + 1, and t = 0 is clean
data. The network is given n.
"""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffjax import parametrisations, schedules
from diffjax.errors import UserError
from diffjax.prediction import Prediction
from diffjax.schedules import DiscreteSchedule, Schedule
from diffjax.stable_diffusion.fields import Fields
from diffjax.types import Array, Times

_PARAMETRISATIONS = {
    "epsilon": parametrisations.eps,
    "v_prediction": parametrisations.v,
    "sample": parametrisations.x0,
}
# Samplers by class and, where it has several, by its fields.
_SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ancestral",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_ancestral",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "unipc",
    "DPMSolverMultistepScheduler": "dpm_solver_pp_2m",
    "DPMSolverSinglestepScheduler": "dpm_solver_pp_2s",
}
_MULTISTEP = {
    ("dpmsolver++", 1): "ddim",
    ("dpmsolver++", 2): "dpm_solver_pp_2m",
    ("dpmsolver++", 3): "dpm_solver_pp_3m",
    ("dpmsolver", 1): "ddim",
    ("dpmsolver", 2): "dpm_solver_2m",
    ("dpmsolver", 3): "dpm_solver_3m",
    ("sde-dpmsolver++", 2): "sde_dpm_solver_pp",
}
_SINGLESTEP = {
    ("dpmsolver++", 2): "dpm_solver_pp_2s",
    ("dpmsolver++", 3): "dpm_solver_pp_3s",
    ("dpmsolver", 2): "dpm_solver_2",
    ("dpmsolver", 3): "dpm_solver_3",
}
# Classes whose spacing is "leading" where the field is absent; "linspace" of all others.
_LEADING = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
# Classes that end at the first noisy step unless set_alpha_to_one, and its default.
_ENDS_AT_FIRST = {"DDIMScheduler": True, "PNDMScheduler": False}
# Classes that clip unless clip_sample is False.
_CLIPS = ("DDIMScheduler", "DDPMScheduler")
_KEPT = ("algorithm_type", "solver_order", "solver_type")


class Scheduler(NamedTuple):
    """The noise process and the sampling of a folder's scheduler.

    Attributes:
      prediction: the schedule, and what the network predicts.
      sampler, grid, threshold: settings of `config.sample`.
      schedule: setting of `config.diffusion`; "" for betas that are listed one by one.
      zero_terminal_snr: likewise.
    """

    prediction: Prediction
    sampler: str
    grid: str
    threshold: str
    schedule: str
    zero_terminal_snr: bool


def step_number(t: Times, schedule: Schedule) -> Array:
    """t - 1: the network's time, from 0."""
    return jnp.asarray(t, jnp.float32) - 1.0


def read(folder: Path, *, prediction: str | None = None) -> Scheduler:
    """The scheduler of a folder's scheduler_config.json.

    Args:
      folder: with that file.
      prediction: a prediction_type instead of the file's; None for the file's.

    Raises:
      UserError: no such file, an unknown class, or a field that is not supported.
    """
    fields = Fields(folder / "scheduler_config.json")
    kind = fields.value("_class_name")
    if kind not in _SAMPLERS:
        fields.refuse("_class_name", " or ".join(_SAMPLERS))
    schedule, text = _schedule(fields)
    predicted = fields.one_of("prediction_type", tuple(_PARAMETRISATIONS), "epsilon")
    predicted = prediction or predicted
    parametrisation = _PARAMETRISATIONS[predicted]
    if parametrisation.needs_signal and schedule.signal_scale[-1] == 0:
        raise UserError(
            f"found rescale_betas_zero_snr=True with prediction_type={predicted!r} in "
            f"{fields.path}; expected v_prediction or sample, since noise can't be inverted where "
            "there is no signal; correct the file"
        )
    scheduler = Scheduler(
        Prediction(schedule, parametrisation, step_number),
        _sampler(fields, kind),
        _grid(fields, kind),
        _threshold(fields, kind),
        text,
        fields.flag("rescale_betas_zero_snr", False),
    )
    _check_others(fields)
    return scheduler


def _schedule(fields: Fields) -> tuple[DiscreteSchedule, str]:
    """The schedule and, without its end at SNR 0, its text for a config."""
    T = fields.whole("num_train_timesteps", 1000)
    start = fields.number("beta_start", 1e-4, above=0)
    end = fields.number("beta_end", 0.02, above=0)
    kind = fields.one_of(
        "beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2"), "linear"
    )
    betas = fields.value("trained_betas")
    try:
        if betas is not None:
            schedule, text = schedules.from_beta(np.asarray(betas, np.float64)), ""
        elif kind == "squaredcos_cap_v2":
            schedule, text = schedules.cosine(T), f"cosine(T={T})"
        else:
            make = schedules.linear_beta if kind == "linear" else schedules.quadratic_beta
            schedule = make(T, beta_start=start, beta_end=end)
            text = f"{make.__name__}(T={T}, beta_start={start!r}, beta_end={end!r})"
        if fields.flag("rescale_betas_zero_snr", False):
            schedule = schedules.zero_terminal_snr(schedule)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"cannot make the noise schedule of {fields.path}: {error}; correct the file"
        ) from error
    return schedule, text


def _sampler(fields: Fields, kind: str) -> str:
    if kind == "PNDMScheduler":
        return "plms" if fields.flag("skip_prk_steps", False) else "pndm"
    several = {
        "DPMSolverMultistepScheduler": _MULTISTEP, "DPMSolverSinglestepScheduler": _SINGLESTEP,
    }.get(kind)  # fmt: skip
    if several is None:
        return _SAMPLERS[kind]
    algorithm = fields.one_of(
        "algorithm_type", tuple(dict.fromkeys(name for name, _ in several)), "dpmsolver++"
    )
    order = fields.whole("solver_order", 2)
    if (algorithm, order) not in several:
        orders = (str(number) for name, number in several if name == algorithm)
        fields.refuse("solver_order", " or ".join(orders))
    fields.only("solver_type", "midpoint")
    return several[algorithm, order]


def _grid(fields: Fields, kind: str) -> str:
    for name, grid in (
        ("use_karras_sigmas", "karras"),
        ("use_exponential_sigmas", "exponential"),
        ("use_beta_sigmas", "beta"),
    ):
        if fields.flag(name, False):
            fields.skip("timestep_spacing", "steps_offset", "set_alpha_to_one", "final_sigmas_type")
            return grid
    spacing = fields.one_of(
        "timestep_spacing", ("leading", "trailing", "linspace"),
        "leading" if kind in _LEADING else "linspace",
    )  # fmt: skip
    offset = fields.whole("steps_offset", 0, least=0)
    options = [f"offset={offset}"] if offset and spacing == "leading" else []
    to_first = fields.one_of("final_sigmas_type", ("zero", "sigma_min"), "zero") == "sigma_min"
    to_one = fields.flag("set_alpha_to_one", _ENDS_AT_FIRST.get(kind, True))
    if to_first or (kind in _ENDS_AT_FIRST and not to_one):
        options.append("last=1")
    return f"{spacing}({', '.join(options)})" if options else spacing


def _threshold(fields: Fields, kind: str) -> str:
    fields.only("thresholding", False)
    fields.skip("dynamic_thresholding_ratio", "sample_max_value")
    limit = fields.number("clip_sample_range", 1.0, above=0)
    if not fields.flag("clip_sample", kind in _CLIPS):
        return "none"
    return "clip" if limit == 1 else f"clip(low={-limit}, high={limit})"


def _check_others(fields: Fields) -> None:
    """Refuses fields of other processes; skips those of other solvers, which are defaults here."""
    for name, *allowed in (
        ("interpolation_type", "linear"),
        ("timestep_type", "discrete"),
        ("use_lu_lambdas", False),
        ("use_flow_sigmas", False),
        ("use_dynamic_shifting", False),
        ("lambda_min_clipped", -float("inf"), "-Infinity"),
        ("shift_terminal", None),
    ):
        fields.only(name, *allowed)
    fields.skip(
        *_KEPT, "skip_prk_steps", "lower_order_final", "euler_at_final", "variance_type",
        "predict_x0", "disable_corrector", "solver_p", "flow_shift", "time_shift_type",
        "sigma_min", "sigma_max", "clip_sample_range",
    )  # fmt: skip
    fields.finish()
