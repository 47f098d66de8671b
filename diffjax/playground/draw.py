"""The panel "draw": one picture, step by step."""

from typing import Any, NamedTuple

from diffjax.errors import UserError
from diffjax.inference.pipeline import Pipeline
from diffjax.playground.clock import Clock
from diffjax.playground.pictures import of_step, packed
from diffjax.playground.runs import Run
from diffjax.playground.values import SETTINGS, Values, how_of
from diffjax.playground.worker import Report

NAMES = ("run", "label", "prompt", "seed", *SETTINGS)


class Drawing(NamedTuple):
    """What is drawn.

    Attributes:
      condition: {"labels": [3]}, {"prompts": ["a cat"]} or {}.
      seed: of the noise.
      how: the settings that differ from the run's.
    """

    condition: dict[str, Any]
    seed: int
    how: dict[str, Any]


def drawing_of(values: Values, model: Pipeline) -> Drawing:
    """What the settings of a view describe, for a model.

    Raises:
      UserError: a wrong value, or a condition that the model does not take.
    """
    return Drawing(condition_of(values, model), values.seed(), how_of(values))


def condition_of(
    values: Values, model: Pipeline, *, label: str = "label", prompt: str = "prompt"
) -> dict[str, Any]:
    """The class or the prompt of a view as arguments of `Pipeline.sample`."""
    check_drawable(model)
    conditions = model.generator().conditions
    condition: dict[str, Any] = {}
    if conditions.has_labels:
        most = conditions.model.num_classes - 1
        condition["labels"] = [values.whole(label, 0, least=-1, most=most)]
    elif values.has(label):
        raise UserError(f"{label} is {values.raw(label)}, and this run has no classes: leave it")
    if conditions.has_texts or conditions.has_prior:
        if not values.has(prompt):
            raise UserError(f"{prompt} is empty, and this run draws what a text says: write one")
        condition["prompts"] = [values.text(prompt)]
    elif values.has(prompt):
        raise UserError(f"{prompt} was given, and this run takes no text: leave it empty")
    return condition


def check_drawable(model: Pipeline) -> None:
    """Refuses models whose samples are no images, or that are given more than a class or a text."""
    if not model.space.images:
        raise UserError(
            f"this run's data are arrays of {tuple(model.space.image_shape)}: the panels show "
            "images"
        )
    conditions = model.generator().conditions
    if hasattr(conditions.model.make_map, "enlarged"):
        raise UserError("this run enlarges images: use the panel edit, task upscale")
    if conditions.model.make_map is not None:
        raise UserError("this run is given a map of what it draws: the panels draw without one")


def run(values: Values, of: Run, report: Report) -> None:
    """Draws; reports each step's pictures, and then the whole."""
    values.known(NAMES)
    stepwise, clock = of.stepwise(), Clock()
    drawing = drawing_of(values, of.model)
    grid = of.model.generator(**drawing.how).sampling.grid
    report({"steps": grid.steps, "t": [float(t) for t in grid.t]})
    with stepwise.running(
        lambda step: report({"step": of_step(step, of.model)}), on_evaluation=lambda: report({})
    ) as model:
        images = model.sample(**drawing.condition, seed=drawing.seed, **drawing.how)
    report(
        {
            "image": packed(images[0]),
            "seconds": clock.seconds,
            "compiling": clock.compiling,
            "evaluations": stepwise.evaluations,
        }
    )
