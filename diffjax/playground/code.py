"""What is seen, as Python and as a command: both give the same bytes as the page."""

import shlex
import urllib.parse
from collections.abc import Sequence

import numpy as np

from diffjax.errors import UserError
from diffjax.playground import compare, draw, edit, mix
from diffjax.playground.runs import Run, Runs
from diffjax.playground.values import Values
from diffjax.playground.worker import Report


def run(values: Values, runs: Runs, report: Report) -> None:
    """Reports the Python and the command of a view, {"panel": name, "values": its settings}."""
    values.known(("panel", "values"))
    panel = values.one_of("panel", PYTHON, "")
    view = Values(values.raw("values") or {})
    of = runs.used(runs[view.raw("run")])
    report({"python": PYTHON[panel](view, of), "command": command(panel, view, of)})


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


def _compare(view: Values, run: Run) -> str:
    calls = [
        f"    model.sample({arguments_of(drawing)})[0],  # {' '.join(name.split())}"
        for name, drawing in compare.drawings_of(view, run)
    ]
    return _program(run, "images = [", *calls, "]")


def _mix(view: Values, run: Run) -> str:
    made = mix.mix_of(view, run.model)
    name = made.function.__name__
    shared = "".join(f", {key}={value!r}" for key, value in made.given.items())
    ends = "ends" if made.between == "seeds" else "*ends"
    path = [f"    ({m.ends!r}, {m.weight})," for m in made.mixtures]
    return _program(
        run, f"images = [{name}(model, {ends}, weight=w{shared})[0] for ends, w in path]",
        imports=[f"from diffjax.inference.mixing import {name}"],
        before=["path = [", *path, "]"],
    )  # fmt: skip


def _edit(view: Values, run: Run) -> str:
    view.known(edit.NAMES)
    source = view.text("source", run.name)
    if view.raw("picture") is not None:
        raise UserError("a picture of your own has no address, and so no code: draw one instead")
    if source != run.name:
        raise UserError("the picture is another run's: copy its code in the panel draw")
    model = run.model
    drawing = draw.drawing_of(edit.picture_values(view, run), model)
    made = edit.edit_of(view, model, model.space.image_shape[:2])
    given = "".join(f", {key}={value!r}" for key, value in made.given.items())
    before = []
    if made.mask is not None:
        bits = np.packbits(made.mask).tobytes().hex()
        shape = made.mask.shape
        before = [
            f"bits = np.unpackbits(np.frombuffer(bytes.fromhex({bits!r}), np.uint8))",
            f"mask = bits[:{made.mask.size}].reshape{shape}  # 1 where the picture is kept",
        ]
        given = f", mask=mask{given}"
    return _program(
        run, f"picture = model.sample({arguments_of(drawing)})",
        f"images = model.edit(picture, {made.task!r}{given})[0]",
        imports=["import numpy as np"] if before else [], before=before,
    )  # fmt: skip


def _program(run: Run, *lines: str, imports: Sequence[str] = (), before: Sequence[str] = ()) -> str:
    head = ["import diffjax", "from diffjax.inference.step_by_step import StepByStep"]
    outside = [name for name in imports if not name.startswith("from diffjax")]
    own = [*head, *(name for name in imports if name not in outside)]
    own.sort(key=lambda line: (line.startswith("from"), line))
    first = [*outside, *([""] if outside else []), *own]
    return "\n".join(
        [
            *first, "",
            f"stepwise = StepByStep(diffjax.load({str(run.folder)!r}))",
            *before,
            "with stepwise.running() as model:",
            *(f"    {line}" for line in lines), "",
        ]
    )  # fmt: skip


PYTHON = {"draw": _draw, "compare": _compare, "mix": _mix, "edit": _edit}
