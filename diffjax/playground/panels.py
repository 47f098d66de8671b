"""The panels by name: what each computes from a view's settings."""

from collections.abc import Callable, Mapping

from diffjax.playground import code, compare, draw, edit, mix, toy
from diffjax.playground.runs import Run, Runs
from diffjax.playground.values import Values
from diffjax.playground.worker import Report

# (settings, all runs, report) -> None
Panel = Callable[[Values, Runs, Report], None]


def _of_run(run: Callable[[Values, Run, Report], None]) -> Panel:
    """A panel of one run's model."""

    def panel(values: Values, runs: Runs, report: Report) -> None:
        chosen = runs.used(runs[values.raw("run")])
        if not chosen.is_loaded:
            report({"loading": chosen.name})
        run(values, chosen, report)

    return panel


def _describe(values: Values, run: Run, report: Report) -> None:
    """What the panels need to know of a run's model."""
    report({"model": run.described()})


PANELS: Mapping[str, Panel] = {
    "describe": _of_run(_describe),
    "draw": _of_run(draw.run),
    "compare": _of_run(compare.run),
    "mix": _of_run(mix.run),
    "edit": edit.run,
    "toy": toy.run,
    "code": code.run,
}
# Those whose pictures `--save` writes, and which have code.
SAVED = ("draw", "compare", "mix", "edit")
