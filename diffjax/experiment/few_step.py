"""`config.diffusion.objective` of few-step models, and their teacher."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from diffjax import grids
from diffjax.checkpoints.run_config import flatten
from diffjax.denoisers import Denoiser
from diffjax.errors import UserError
from diffjax.experiment.autoencoder_objective import DISCRIMINATORS, PERCEPTUAL
from diffjax.experiment.init_from import split
from diffjax.experiment.run import read_config
from diffjax.experiment.schema import DIFFUSION
from diffjax.experiment.spec import from_spec, from_table, parse_spec
from diffjax.losses import autoencoding, distances
from diffjax.losses.distances import Distance
from diffjax.losses.mean_flow import TANGENTS
from diffjax.prediction import Prediction
from diffjax.training.denoising_objective import DenoisingObjective
from diffjax.training.distribution_matching_objective import DistributionMatchingObjective
from diffjax.training.few_step_methods import (
    Consistency,
    ContinuousConsistency,
    MeanFlow,
    Shortcut,
)
from diffjax.training.few_step_objective import FewStepObjective, Method, Teacher
from diffjax.training.progressive_objective import ProgressiveObjective
from diffjax.types import Data, PerExample

FewStep = FewStepObjective | ProgressiveObjective | DistributionMatchingObjective


class Given(NamedTuple):
    """What an objective is made of.

    Attributes:
      chosen: the section's network, times and squared error.
      teacher: the model of config.diffusion.teacher.
      guide: the guidance of config.diffusion.teacher_guidance.
      shape: of one x_0.
    """

    chosen: DenoisingObjective
    teacher: Teacher | None = None
    guide: Callable[[Denoiser], Denoiser] | None = None
    shape: tuple[int, ...] = ()


Make = Callable[[Any, Given], FewStep]
# What a student and the run that it starts from must have in common.
_OF_START = (
    "diffusion.schedule",
    "diffusion.zero_terminal_snr",
    "diffusion.log_snr_shift",
    "diffusion.parametrisation",
    "diffusion.time_input",
)
# Keys of config.diffusion that these objectives have no use for.
_UNUSED = ("loss_target", "weighting", "self_conditioning", "offset_noise", "learned_weighting")


def _perceptual(features: str = "efficientnet_lite0", pixels: float = 1.0) -> Distance:
    """The distance of a network's features, and `pixels` times that of the images themselves."""
    network = from_spec(features, PERCEPTUAL, key="diffusion.objective: features")
    if network is None:
        raise ValueError("features = 'none': use distance='squared_error' or 'pseudo_huber'")
    of_pixels = distances.pseudo_huber()

    def distance(x: Data, y: Data) -> PerExample:
        maps = partial(network.apply, network.params)
        far = autoencoding.perceptual_distance(maps, x, y, weights=network.weights)
        return far + pixels * of_pixels(x, y)

    return distance


DISTANCES: Mapping[str, Callable[..., Distance]] = {
    "squared_error": lambda: distances.squared_error,
    "pseudo_huber": distances.pseudo_huber,
    "perceptual": _perceptual,
}


def _mean_flow(
    share: float = 0.25,
    tangent: str = "data",
    power: float = 0.75,
    eps: float = 1e-3,
    scale: float = 1.0,
    mix: float = 0.0,
) -> Make:
    _check_share("share", share)
    if tangent not in TANGENTS:
        raise ValueError(f"tangent must be one of {', '.join(TANGENTS)}, not {tangent!r}")
    if not (power >= 0 and eps > 0):
        raise ValueError(f"power must be at least 0 and eps above 0, not {power} and {eps}")
    if not (scale > 0 and 0 <= mix < 1):
        raise ValueError(f"scale must be above 0 and mix in [0, 1), not {scale} and {mix}")

    def make(config: Any, given: Given) -> FewStepObjective:
        _check(config, given.chosen, spans=True)
        chosen = given.chosen
        if (scale, mix) != (1.0, 0.0) and not config.diffusion.condition_dropout:
            raise UserError(
                f"config.diffusion.objective = {config.diffusion.objective!r} is guided by the "
                "unconditional velocity: set config.diffusion.condition_dropout above 0"
            )
        method = MeanFlow(
            chosen.prediction, chosen.sample_times, share, tangent, power, eps, scale, mix,
            config.condition.keep_map,
        )  # fmt: skip
        return _of_method(given, method)

    return make


def _shortcut(share: float = 0.25, levels: int = 7) -> Make:
    _check_share("share", share)
    if not share > 0:
        raise ValueError("share must be above 0")
    if not 1 <= levels <= 16:
        raise ValueError(f"levels must be in [1, 16], not {levels}")

    def make(config: Any, given: Given) -> FewStepObjective:
        _check(config, given.chosen, spans=True)
        return _of_method(given, Shortcut(given.chosen.prediction, share, levels))

    return make


def _consistency(
    distance: str = "pseudo_huber",
    stages: int = 8,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    anchor: float = 0.0,
) -> Make:
    if stages < 1:
        raise ValueError(f"stages must be at least 1, not {stages}")
    if not (q > 1 and k >= 0 and b >= 0):
        raise ValueError(f"q must be above 1, k and b at least 0, not {q}, {k} and {b}")
    if anchor < 0:
        raise ValueError(f"anchor must be at least 0, not {anchor}")
    between = from_table(distance, DISTANCES, key="diffusion.objective: distance")

    def make(config: Any, given: Given) -> FewStepObjective:
        _check(config, given.chosen, taught=True)
        chosen = given.chosen
        if not anchor:
            _check_skip(config, chosen.prediction, "set anchor=0.05 or ")
        steps = -(-config.train.steps // stages)
        method = Consistency(chosen.prediction, between, steps, stages, q, k, b, anchor)
        return _of_method(given, method)

    return make


def _continuous_consistency(
    sigma_data: float = 0.5, warm_up: int = 10_000, normalise: bool = True
) -> Make:
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be above 0, not {sigma_data}")
    if warm_up < 0:
        raise ValueError(f"warm_up must be at least 0 steps, not {warm_up}")

    def make(config: Any, given: Given) -> FewStepObjective:
        _check(config, given.chosen, taught=True, but=("learned_weighting",))
        chosen = given.chosen
        if chosen.prediction.schedule.discrete:
            raise UserError(
                f"config.diffusion.objective = {config.diffusion.objective!r} differentiates in "
                f"time, and config.diffusion.schedule = {config.diffusion.schedule!r} is discrete: "
                "use a continuous one, or objective='consistency'"
            )
        _check_skip(config, chosen.prediction, "")
        method = ContinuousConsistency(chosen.prediction, sigma_data, warm_up, normalise)
        return _of_method(given, method)

    return make


def _progressive(steps: int = 8, stages: int = 3) -> Make:
    if stages < 1 or steps % 2**stages:
        raise ValueError(
            f"steps must be a multiple of 2^stages, such as 8 for 3 stages, not {steps} for "
            f"{stages}"
        )

    def make(config: Any, given: Given) -> ProgressiveObjective:
        _check(config, given.chosen, guided=True, but=("weighting",))
        chosen = given.chosen
        schedule = chosen.prediction.schedule
        if schedule.discrete and steps > schedule.T:
            raise UserError(
                f"config.diffusion.objective = {config.diffusion.objective!r} begins with {steps} "
                f"steps on a schedule of {schedule.T:g}: take fewer"
            )
        if not config.train.init_from:
            raise UserError(
                f"config.diffusion.objective = {config.diffusion.objective!r} halves the steps of "
                "a trained model: name its workdir in config.train.init_from"
            )
        weighting = chosen.loss.keywords["weighting"]  # type: ignore[attr-defined]
        return ProgressiveObjective(
            chosen.network, chosen.prediction, weighting, steps, stages,
            -(-config.train.steps // stages), given.guide,
        )  # fmt: skip

    return make


def _distribution_matching(
    steps: int = 1,
    fake_updates: int = 5,
    adversarial: float = 0.0,
    discriminator: str = "patch(channels=64, layers=2)",
) -> Make:
    if not 1 <= steps <= 16:
        raise ValueError(f"steps must be in [1, 16], not {steps}")
    if fake_updates < 1:
        raise ValueError(f"fake_updates must be at least 1, not {fake_updates}")
    if adversarial < 0:
        raise ValueError(f"adversarial must be at least 0, not {adversarial}")
    judge = from_table(discriminator, DISCRIMINATORS, key="diffusion.objective: discriminator")

    def make(config: Any, given: Given) -> DistributionMatchingObjective:
        _check(config, given.chosen, taught=True)
        chosen = given.chosen
        if not config.diffusion.teacher:
            raise UserError(
                f"config.diffusion.objective = {config.diffusion.objective!r} needs a teacher: "
                "name its workdir in config.diffusion.teacher"
            )
        if not config.train.init_from:
            raise UserError(
                f"config.diffusion.objective = {config.diffusion.objective!r} makes a generator of "
                "a trained model: name its workdir in config.train.init_from, too"
            )
        grid = grids.trailing(chosen.prediction.schedule, steps)
        judged = adversarial > 0 and judge is not None
        if judged and len(given.shape) != 3:
            raise UserError(
                f"config.diffusion.objective = {config.diffusion.objective!r}: its discriminator "
                f"is of images, not of data of {given.shape}: set adversarial=0.0"
            )
        return DistributionMatchingObjective(
            chosen.network, chosen.prediction, chosen.sample_times, given.shape, given.teacher,
            grid, fake_updates, judge() if judged else None, adversarial,
        )  # fmt: skip

    return make


OBJECTIVES: Mapping[str, Callable[..., Make]] = {
    "mean_flow": _mean_flow,
    "shortcut": _shortcut,
    "consistency": _consistency,
    "continuous_consistency": _continuous_consistency,
    "progressive": _progressive,
    "distribution_matching": _distribution_matching,
}


def _of_method(given: Given, method: Method) -> FewStepObjective:
    chosen = given.chosen
    return FewStepObjective(
        chosen.network, chosen.prediction, chosen.sample_times, method, given.teacher,
        learned_weighting=chosen.learned_weighting,
    )  # fmt: skip


def _check_skip(config: Any, prediction: Prediction, instead: str) -> None:
    """Raises UserError for a network that is not the identity without noise by construction."""
    c = config.diffusion
    if prediction.parametrisation.name == "x0":
        raise UserError(
            f"config.diffusion.objective = {c.objective!r} with parametrisation = "
            f"{c.parametrisation!r} has nothing that keeps clean images as they are, and falls to "
            f"a constant: {instead}use a model of another parametrisation"
        )


def _check(
    config: Any,
    chosen: DenoisingObjective,
    *,
    spans: bool = False,
    taught: bool = False,
    guided: bool = False,
    but: tuple[str, ...] = (),
) -> None:
    """Raises UserError for keys of config.diffusion that the objective has no use for."""
    c = config.diffusion
    objective = f"config.diffusion.objective = {c.objective!r}"
    for name in _UNUSED:
        default = DIFFUSION[f"diffusion.{name}"].default
        if name not in but and c[name] != default:
            raise UserError(
                f"{objective} ignores config.diffusion.{name} = {c[name]!r}: leave it at "
                f"{default!r}"
            )
    if c.teacher and c.pairs == "none" and not taught:
        raise UserError(
            f"{objective} has no teacher, but config.diffusion.teacher = {c.teacher!r}: leave it "
            "empty"
        )
    if c.teacher_guidance != "none" and not guided and not (taught and c.teacher):
        raise UserError(
            f"{objective} has no teacher to guide, but config.diffusion.teacher_guidance = "
            f"{c.teacher_guidance!r}: set it to 'none'"
        )
    sampled = parse_spec(c.time_sampling, key="diffusion.time_sampling").path
    if sampled == "loss_second_moment":
        raise UserError(
            f"{objective} is incompatible with config.diffusion.time_sampling = "
            f"{c.time_sampling!r}: use uniform, logit_normal or log_normal"
        )
    if spans and not chosen.prediction.parametrisation.spans:
        raise UserError(
            f"{objective} trains average velocities, not config.diffusion.parametrisation = "
            f"{c.parametrisation!r}: set it to 'average_velocity', with schedule='rectified_flow'"
        )
    if not spans and chosen.prediction.parametrisation.spans:
        raise UserError(
            f"{objective} trains a denoiser, which has no use for config.diffusion.parametrisation "
            f"= {c.parametrisation!r}: use for example v, velocity or edm"
        )
    if not spans:
        _check_start(config)
    name = parse_spec(c.objective, key="diffusion.objective").path
    if name == "mean_flow" and sampled == "low_discrepancy":
        raise UserError(
            f"{objective} draws two times for each example, which "
            "config.diffusion.time_sampling = 'low_discrepancy' would keep at one distance in a "
            "batch: use for example logit_normal(mean=-0.4, std=1.0)"
        )


def _check_start(config: Any) -> None:
    """Raises UserError where the run that a student starts from is of another process.

    Its denoiser is the student's first estimate, so what the network predicts must be the same. A
    run that is not there any more is only missed where it is read.
    """
    if not config.train.init_from:
        return
    folder, _ = split(config.train.init_from)
    theirs = read_config(folder)
    if theirs is None:
        return
    flat, their_flat = flatten(config), flatten(theirs)
    for key in _OF_START:
        if their_flat.get(key, flat[key]) != flat[key]:
            raise UserError(
                f"config.train.init_from = {config.train.init_from!r}: that run has config.{key} = "
                f"{their_flat[key]!r}, not {flat[key]!r}: a student must predict as it does"
            )


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], not {value}")
