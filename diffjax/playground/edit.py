"""The panel "edit": a picture that is drawn or loaded, and what a task makes of it."""

import base64
import binascii
from typing import Any, NamedTuple

import numpy as np

from diffjax.errors import UserError
from diffjax.inference.pipeline import Pipeline
from diffjax.playground.clock import Clock
from diffjax.playground.draw import condition_of, drawing_of
from diffjax.playground.pictures import of_step, packed, unpacked
from diffjax.playground.runs import Run, Runs
from diffjax.playground.values import SETTINGS, Values, how_of
from diffjax.playground.worker import Report

NAMES = (
    "run", "label", "prompt", "seed", "source", "source_label", "source_prompt", "picture", "task",
    "strength", "factor", "std", "mask", "count", "edit_seed", *SETTINGS,
)  # fmt: skip
MASKED = ("inpaint", "repaint")
TASKS = (*MASKED, "vary", "invert", "super_resolution", "deblur", "colourise", "upscale")
CELLS = 64  # of a mask along a side, at most


class Edit(NamedTuple):
    """What a view describes.

    Attributes:
      task: the text of the task.
      mask: (H, W) of booleans, True where the picture is kept; None for a task without one.
      given: the other arguments of `Pipeline.edit`.
    """

    task: str
    mask: np.ndarray | None
    given: dict[str, Any]


def edit_of(values: Values, model: Pipeline, size: tuple[int, ...]) -> Edit:
    """What the settings of a view describe, for a picture of a size.

    Raises:
      UserError: a wrong value, or a mask of another size.
    """
    enlarges = hasattr(model.generator().conditions.model.make_map, "enlarged")
    task = values.one_of("task", TASKS, "upscale" if enlarges else "inpaint")
    if enlarges and task != "upscale":
        raise UserError(f"task is {task}, and this run enlarges images: choose upscale")
    text = task
    if task == "vary":
        text = f"vary(strength={values.number('strength', 0.5, least=0.01, most=1.0)})"
    elif task == "super_resolution":
        text = f"super_resolution(factor={values.whole('factor', 2, least=1, most=16)})"
    elif task == "deblur":
        text = f"deblur(std={values.number('std', 1.0, least=0.1, most=10.0)})"
    mask = kept(values.text("mask"), size) if task in MASKED else None
    given = {
        **_condition(values, model),
        "count": values.whole("count", 3, least=1, most=8),
        "seed": values.seed("edit_seed"),
        **how_of(values),
    }
    return Edit(text, mask, given)


def _condition(values: Values, model: Pipeline) -> dict[str, Any]:
    """The class or prompt of the edit; those of the picture do for it."""
    if not model.generator().conditions.model.make_map:
        return condition_of(values, model)
    conditions = model.generator().conditions
    found: dict[str, Any] = {}
    if conditions.has_labels:
        most = conditions.model.num_classes - 1
        found["labels"] = [values.whole("label", -1, least=-1, most=most)]
    if conditions.has_texts:
        found["prompts"] = [values.text("prompt")]
    return found


def cells_of(size: tuple[int, ...]) -> tuple[int, int]:
    """The cells of a mask for a picture of a size: a pixel each, or more of larger pictures."""
    every = -(-max(size) // CELLS)
    return -(-size[0] // every), -(-size[1] // every)


def kept(text: str, size: tuple[int, ...]) -> np.ndarray:
    """A mask (H, W), True where the picture is kept, from the bits of the painted cells.

    Args:
      text: the bits row by row, packed to bytes, in base64 of addresses; "" for the right half.
      size: (H, W) of the picture.

    Raises:
      UserError: another number of bits.
    """
    rows, columns = cells_of(size)
    if not text:
        painted = np.zeros((rows, columns), bool)
        painted[:, columns // 2 :] = True
    else:
        try:
            packed_bits = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            packed_bits = b""
        if len(packed_bits) != -(-rows * columns // 8):
            raise UserError(f"mask is not of {rows}x{columns} cells, which this picture has: paint")
        bits = np.unpackbits(np.frombuffer(packed_bits, np.uint8))
        painted = bits[: rows * columns].reshape(rows, columns).astype(bool)
    every = -(-max(size) // CELLS)
    return ~painted.repeat(every, 0).repeat(every, 1)[: size[0], : size[1]]


def picture_values(values: Values, source: Run) -> Values:
    """The settings of the picture that is drawn to be edited, as those of the panel "draw".

    Its class and its prompt are the edit's, unless it has its own.
    """
    given = {"run": source.name, "seed": values.raw("seed")}
    conditions = source.model.generator().conditions
    takes = {
        "label": conditions.has_labels,
        "prompt": conditions.has_texts or conditions.has_prior,
    }
    for name in takes:
        own = f"source_{name}"
        if values.has(own):
            given[name] = values.raw(own)
        elif takes[name]:
            given[name] = values.raw(name)
    return Values(given)


def run(values: Values, runs: Runs, report: Report) -> None:
    """Draws the picture unless one was given, and edits it."""
    values.known(NAMES)
    of = runs.used(runs[values.raw("run")])
    if not of.is_loaded:
        report({"loading": of.name})
    model = of.model
    if not model.space.images:
        raise UserError("this run's data are arrays: edits are of images")
    edit = edit_of(values, model, model.space.image_shape[:2])
    if values.raw("picture") is not None:
        picture = unpacked("picture", values.raw("picture"), model.space.image_shape[-1])
    else:
        picture = _drawn(values, runs, of, report)
    report({"picture": packed(picture)})
    stepwise, clock = of.stepwise(), Clock()
    with stepwise.running(
        lambda step: report({"seen": of_step(step, model)["x_0"]}),
        on_evaluation=lambda: report({}),
    ) as stepping:
        made = stepping.edit(picture[None], edit.task, mask=edit.mask, **edit.given)[0]
    report({"columns": len(made) - edit.given["count"]})
    for image in made:
        report({"image": packed(image)})
    report({"seconds": clock.seconds, "evaluations": stepwise.evaluations})


def _drawn(values: Values, runs: Runs, of: Run, report: Report) -> np.ndarray:
    """The picture of the view's seed, by the run that is its source."""
    source = runs.used(runs[values.text("source", of.name)])
    if hasattr(source.model.generator().conditions.model.make_map, "enlarged"):
        raise UserError("this run enlarges images: load one, or choose another run to draw it")
    drawing = drawing_of(picture_values(values, source), source.model)
    with source.stepwise().running(on_evaluation=lambda: report({})) as stepping:
        return stepping.sample(**drawing.condition, seed=drawing.seed)[0]
