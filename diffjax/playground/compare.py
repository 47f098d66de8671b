"""The panel "compare": one seed under several samplers, numbers of steps or scales."""

from typing import Any

from diffjax.errors import UserError
from diffjax.playground.clock import Clock
from diffjax.playground.draw import Drawing, drawing_of
from diffjax.playground.pictures import of_step, packed
from diffjax.playground.runs import Run
from diffjax.playground.values import SETTINGS, Values
from diffjax.playground.worker import Report

NAMES = ("run", "label", "prompt", "seed", "by", "items", *SETTINGS)
KEYS = {"sampler": "sampler", "steps": "steps", "scale": "scale"}
DEFAULTS = {
    "sampler": ["ddim", "dpm_solver_pp_2m", "heun", "euler_ancestral"],
    "steps": ["4", "8", "16", "32"],
    "scale": ["1", "2", "4", "8"],
}
MOST = 12


def drawings_of(values: Values, run: Run) -> list[tuple[str, Drawing]]:
    """The name of each picture and what it is.

    Raises:
      UserError: a wrong value, or too many pictures.
    """
    values.known(NAMES)
    by = values.one_of("by", KEYS, "sampler")
    items = values.items("items") or DEFAULTS[by]
    if len(items) > MOST:
        raise UserError(f"{len(items)} pictures to compare: expected at most {MOST}")
    drawings = []
    for item in items:
        changed: dict[str, Any] = {KEYS[by]: item}
        if by == "scale" and values.text("guidance") in ("", "none"):
            changed["guidance"] = "classifier_free"
        drawings.append((str(item), drawing_of(values.but(changed), run.model)))
    return drawings


def run(values: Values, of: Run, report: Report) -> None:
    """Draws each picture, with the time that it took and the network's evaluations."""
    stepwise, model = of.stepwise(), of.model
    drawings = drawings_of(values, of)
    report({"items": [name for name, _ in drawings]})
    with stepwise.running(on_evaluation=lambda: report({})) as stepping:
        # The network is compiled before anything is timed.
        stepping.sample(**drawings[0][1].condition, steps=1, sampler="ddim", grid="trailing")
    for number, (_, drawing) in enumerate(drawings):

        def seen(step: Any, number: int = number) -> None:
            report({"item": number, "seen": of_step(step, model)["x_0"]})

        clock = Clock()
        try:
            with stepwise.running(seen, on_evaluation=lambda: report({})) as stepping:
                images = stepping.sample(**drawing.condition, seed=drawing.seed, **drawing.how)
        except (UserError, ValueError, TypeError) as error:
            report({"item": number, "failed": str(error).splitlines()[0]})
            continue
        report(
            {
                "item": number,
                "image": packed(images[0]),
                "seconds": clock.seconds,
                "evaluations": stepwise.evaluations,
            }
        )
