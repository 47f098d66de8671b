"""What is seen, as Python and as a command: both give the same bytes as the page."""

import shlex
import urllib.parse
from typing import Any

from diffjax.playground import draw
from diffjax.playground.runs import Run, Runs
from diffjax.playground.values import Values


def of(values: Values, runs: Runs) -> dict[str, Any]:
    """The Python and the command of a view: {"panel": name, "values": its settings}.

    Raises:
      UserError: a view that has none, or a wrong value.
    """
    values.known(("panel", "values"))
    panel = values.one_of("panel", PYTHON, "")
    view = Values(values.raw("values") or {})
    run = runs[view.raw("run")]
    return {"python": PYTHON[panel](view, run), "command": command(panel, view, run)}


def command(panel: str, view: Values, run: Run) -> str:
    """The command that writes the view's picture to a file."""
    given = {name: view.raw(name) for name in view.names() if view.has(name) and name != "run"}
    address = f"{panel}?{urllib.parse.urlencode(given)}"
    return (
        f"python -m diffjax.playground --workdir={shlex.quote(str(run.folder))} "
        f"--view={shlex.quote(address)} --save={panel}.png"
    )


def _draw(view: Values, run: Run) -> str:
    drawing = draw.drawing_of(view.known(draw.NAMES), run.model)
    return _program(run, f"images = model.sample({arguments_of(drawing)})") + "image = images[0]\n"


def arguments_of(drawing: draw.Drawing) -> str:
    """The arguments of `Pipeline.sample` as they are written."""
    given = {**drawing.condition, "seed": drawing.seed, **drawing.how}
    return ", ".join(f"{name}={value!r}" for name, value in given.items())


def _program(run: Run, *lines: str) -> str:
    indented = "".join(f"    {line}\n" for line in lines)
    return (
        "import diffjax\n"
        "from diffjax.inference.step_by_step import StepByStep\n\n"
        f"stepwise = StepByStep(diffjax.load({str(run.folder)!r}))\n"
        f"with stepwise.running() as model:\n{indented}"
    )


PYTHON = {"draw": _draw}
