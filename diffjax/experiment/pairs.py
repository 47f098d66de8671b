"""`config.diffusion.pairs`: noise and the teacher's sample of it, in the place of data (reflow)."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffjax import data, grids
from diffjax.errors import UserError
from diffjax.experiment.model import Model
from diffjax.experiment.other_model import teacher_guide
from diffjax.experiment.sampling import SAMPLERS
from diffjax.experiment.spec import from_table, function_from_spec, parse_spec
from diffjax.inference.sampling import OtherModel, apply_network
from diffjax.latent import pairs as drawing
from diffjax.latent.first_stage import digest
from diffjax.latent.pairs import PairSource, PairSpace
from diffjax.latent.space import DiffusionSpace
from diffjax.models.condition import Condition
from diffjax.types import Array

KEY = "diffusion.pairs"
BATCH = 250


class Pairs(NamedTuple):
    """How pairs are drawn; see `ode`."""

    number: int
    steps: int
    sampler: str
    seed: int


def ode(count: int = 50_000, steps: int = 25, sampler: str = "heun", seed: int = 0) -> Pairs:
    """Samples by a deterministic sampler on the trailing grid."""
    if count < 1 or steps < 1:
        raise ValueError(f"count and steps must be at least 1, not {count} and {steps}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, not {seed}")
    return Pairs(count, steps, sampler, seed)


PAIRS: Mapping[str, Callable[..., Pairs | None]] = {"none": lambda: None, "ode": ode}


def check(config: Any) -> Pairs | None:
    """What config.diffusion.pairs says; None for none.

    Raises:
      UserError: invalid arguments, no teacher, or what pairs can't be combined with.
    """
    found: Pairs | None = from_table(config.diffusion.pairs, PAIRS, key=KEY)
    if found is None:
        return None
    what = f"config.{KEY} = {config.diffusion.pairs!r}"
    if not config.diffusion.teacher:
        raise UserError(
            f"{what} are drawn from a trained model: name it in config.diffusion.teacher"
        )
    objective = parse_spec(config.diffusion.objective, key="diffusion.objective")
    if objective.module or objective.path == "distribution_matching":
        raise UserError(
            f"{what}: config.diffusion.objective = {config.diffusion.objective!r} draws noise of "
            "its own, not that of the pairs: use for example squared_error or consistency"
        )
    if config.diffusion.offset_noise:
        raise UserError(
            f"{what}: config.diffusion.offset_noise = {config.diffusion.offset_noise} would change "
            "the noise of the pairs: set it to 0"
        )
    for key, none in (
        ("condition.text", "none"),
        ("condition.map", "none"),
        ("condition.embedding", "none"),
        ("diffusion.augment", "none"),
    ):
        section, name = key.split(".")
        if config[section][name] != none:
            raise UserError(
                f"{what} are of models without a condition or with classes alone, and config.{key} "
                f"= {config[section][name]!r}: set it to {none!r}"
            )
    return found


def space(config: Any, model: Model, teacher: OtherModel | None) -> DiffusionSpace:
    """The space of what is trained on: the model's own, or of pairs.

    Raises:
      UserError: as `check`, or an unknown sampler.
    """
    wanted = check(config)
    if wanted is None:
        return model.space
    guide = teacher_guide(model)
    sampler = function_from_spec(wanted.sampler, SAMPLERS, key=f"{KEY}: sampler")
    try:
        grid = grids.trailing(model.diffusion.schedule, wanted.steps)
    except ValueError as error:
        raise UserError(f"config.{KEY} = {config.diffusion.pairs!r}: {error}") from None
    classes = model.conditions.num_classes

    def solve(params: Any, noise: Array, label: Array) -> Array:
        assert teacher is not None
        denoise = teacher.diffusion.denoiser(apply_network(teacher.network, params))
        if guide is not None:
            denoise = guide(denoise)
        cond = Condition(label=label) if classes else None
        start: Array = sampler(denoise, noise * grid.noise_scale[0], grid=grid, cond=cond).x_0
        return start

    def draw(images: data.ImageSource) -> PairSource:
        assert teacher is not None
        guided = config.diffusion.teacher_guidance
        of_teacher = f"{digest(teacher.params)} {wanted} {guided} {model.space.shape} {classes}"
        return drawing.pairs(
            solve, teacher.params, shape=model.space.shape, count=wanted.number,
            num_classes=classes, seed=wanted.seed, batch=min(BATCH, wanted.number),
            key="pairs-" + hashlib.sha256(of_teacher.encode()).hexdigest()[:26],
            name=images.name, class_names=tuple(images.class_names),
        )  # fmt: skip

    return PairSpace(model.space, draw)
