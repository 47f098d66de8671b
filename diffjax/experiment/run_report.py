"""The page about a run, from the files of its workdir: `--mode=report`.

Every file may be absent, as in a run of an older version or one that is being trained; one that
can't be read is named on the page. No parameters are read, and JAX is not used.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffjax._version import __version__
from diffjax.checkpoints import origin, parameters
from diffjax.checkpoints.run_config import flatten, from_json, read_json
from diffjax.data import credits
from diffjax.errors import UserError
from diffjax.experiment import schema
from diffjax.experiment.report_evaluation import evaluation
from diffjax.figures import page
from diffjax.figures.loss_curve import FEWEST_TO_SMOOTH, moving_average
from diffjax.figures.page import Section
from diffjax.figures.svg_curves import Line, curves
from diffjax.training.logs import clock, read_rows
from diffjax.training.starts import STARTS

REPORT = "report.html"
MOST_GRIDS = 8  # pictures of training, evenly spaced
MOST_DRAWN = 4  # pictures of generated/ and edits/, the newest
# Metrics with a place of their own on the page, and those that are about the machine.
_SHOWN = ("step", "loss", "eval_loss", "learning_rate", "grad_norm", "step_ms_p50", "step_ms_p95")
_OF_MACHINE = (
    "images_per_second", "data_wait_ms", "compilations", "host_memory_mb", "host_memory_peak_mb",
    "host_memory_anonymous_mb", "open_files", "device_memory_mb",
)  # fmt: skip


class _Run(NamedTuple):
    """What a workdir holds.

    Attributes:
      folder: the workdir.
      config: complete; None if it can't be read.
      rows: of metrics.jsonl.
      starts: of starts.jsonl; () of older versions.
      about: description of the data; {} without a checkpoint.
      steps: of its checkpoints.
      problems: sentences on what can't be read.
    """

    folder: Path
    config: Any
    rows: Sequence[dict[str, Any]]
    starts: Sequence[dict[str, Any]]
    about: dict[str, Any]
    steps: Sequence[int]
    problems: list[str]


def html(folder: Path) -> str:
    """The page of a workdir.

    Raises:
      UserError: the folder holds no run.
    """
    run = _read(folder)
    sections = [
        Section("Summary", page.facts(_summary(run)) + _notes(run)),
        Section("Curves", _curves(run)),
        Section("Samples", _pictures(run)),
        Section("Evaluation", evaluation(folder, run.problems)),
        Section("Config", _config(run)),
        Section("Machine and versions", _machine(run)),
        Section("Data", _data(run)),
    ]
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    what = "A run" if run.config is None else f"Training of {schema.kind(run.config)}"
    name = run.about.get("name") or (run.config is not None and run.config.data.name)
    return page.page(
        folder.absolute().name,
        f"{what} on {name}" if name else what,
        sections,
        footer=f"Made by diffjax {__version__} at {made}.",
    )


def _read(folder: Path) -> _Run:
    problems: list[str] = []
    if not any((folder / name).exists() for name in ("config.json", "metrics.jsonl")):
        raise UserError(f"{folder} holds no run: train first, or give the --workdir of a run")
    stored = None
    with _reported(problems):
        stored = read_json(folder / "config.json")
    config = None
    if stored is not None:
        with _reported(problems):
            config = schema.complete(ConfigDict(from_json(stored)))
    rows = _rows(folder / "metrics.jsonl", problems)
    starts = _rows(folder / STARTS, problems)
    about: dict[str, Any] = {}
    with _reported(problems):
        about = parameters.read_about(folder) or {}
    checkpoints = folder / "checkpoints"
    steps = sorted(int(p.name) for p in checkpoints.glob("*") if p.name.isdecimal())
    return _Run(folder, config, rows, starts, about, steps, problems)


@contextlib.contextmanager
def _reported(problems: list[str]) -> Iterator[None]:
    """Adds what can't be read to the page's problems."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        problems.append(f"{type(error).__name__}: {error}")


def _rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    rows: list[Any] = []
    with _reported(problems):
        rows = read_rows(path)
    return [row for row in rows if isinstance(row, dict) and type(row.get("step")) is int]


def _notes(run: _Run) -> str:
    return "".join(page.paragraph(problem, kind="note") for problem in run.problems)


def _summary(run: _Run) -> dict[str, Any]:
    train = {} if run.config is None else run.config.train
    latest = max([row["step"] for row in run.rows] + list(run.steps), default=0)
    total, batch = train.get("steps"), train.get("batch_size")
    x, losses = _values(run, "loss")
    at, held_out = _values(run, "eval_loss")
    finite = np.isfinite(held_out)
    best = ""
    if finite.any():
        least = int(np.nanargmin(np.where(finite, held_out, np.nan)))
        best = f"{held_out[-1]:.4g} (lowest: {held_out[least]:.4g} at step {at[least]:.0f})"
    seconds = _seconds(run)
    size = run.starts[-1].get("parameters") if run.starts else None
    unfinished = "" if total in (None, latest) else " (being trained, or stopped)"
    return {
        "Step": f"{latest} of {total}{unfinished}" if total else latest,
        "Training loss": f"{losses[-1]:.4g}" if len(x) else None,
        "Held-out loss": best,
        "Parameters": f"{size:,}" if isinstance(size, int) else None,
        "Images seen": f"{latest * batch:,} in batches of {batch}" if batch else None,
        "Time of the steps": clock(seconds) if seconds else None,
        "Checkpoints": ", ".join(map(str, run.steps)) or "none",
    }


def _seconds(run: _Run) -> float:
    """Seconds that the steps took, from the rate of each row."""
    if run.config is None:
        return 0.0
    total, before = 0.0, 0
    for row in run.rows:
        rate = row.get("images_per_second")
        if isinstance(rate, float | int) and rate > 0:
            total += max(0, row["step"] - before) * run.config.train.batch_size / rate
            before = row["step"]
    return total


def _values(run: _Run, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, by step, the last of equal steps."""
    found = {row["step"]: row[key] for row in run.rows if isinstance(row.get(key), float | int)}
    steps = sorted(found)
    return np.array(steps, np.float64), np.array([found[s] for s in steps], np.float64)


def _restarts(run: _Run) -> list[int]:
    """The steps after which training was resumed; of older versions, from the metrics."""
    if run.starts:
        return sorted({start["step"] for start in run.starts} - {0})
    # The first row of a start has a rate, and no step times yet.
    first = [row["step"] - 1 for row in run.rows if "loss" in row and "step_ms_p50" not in row]
    return sorted(set(first) - {0}) if any("step_ms_p50" in row for row in run.rows) else []


def _curves(run: _Run) -> str:
    marks = _restarts(run)

    def chart(title: str, lines: Sequence[Line], *, logarithmic: bool = False) -> str:
        lines = [line for line in lines if np.isfinite(line.y).any()]
        if not lines:
            return ""
        drawn = curves(lines, title=title, logarithmic=logarithmic, marks=marks)
        legend = [(line.name, line.colour, line.style) for line in lines] if lines[1:] else []
        return page.chart(drawn, title, legend)

    def plain(key: str, title: str, *, logarithmic: bool = False) -> str:
        return chart(title, [Line(title, *_values(run, key))], logarithmic=logarithmic)

    charts = [
        chart("loss", _losses(run), logarithmic=True),
        plain("learning_rate", "learning rate"),
        plain("grad_norm", "gradient's norm", logarithmic=True),
        chart(
            "milliseconds a step",
            [
                Line("median", *_values(run, "step_ms_p50")),
                Line("95th percentile", *_values(run, "step_ms_p95"), colour=1, style="thin"),
            ],
        ),
    ]
    names = sorted({key for row in run.rows for key in row} - {*_SHOWN, *_OF_MACHINE})
    charts += [plain(name, name.replace("_", " "), logarithmic=True) for name in names]
    of_machine = [plain(name, name.replace("_", " ")) for name in _OF_MACHINE]
    resumed = "Dashed lines: where training was resumed." if marks else ""
    return (
        page.grid(charts, wide=True)
        + (page.paragraph(resumed, kind="soft") if resumed and any(charts) else "")
        + page.details("Speed and memory", page.grid(of_machine, wide=True))
    )


def _losses(run: _Run) -> list[Line]:
    x, y = _values(run, "loss")
    at, held_out = _values(run, "eval_loss")
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    lines = [Line("training", x, y)]
    if len(x) >= FEWEST_TO_SMOOTH:
        lines = [Line("training", x, y, style="thin"), Line("smoothed", x, moving_average(y))]
    return [*lines, Line("held out", at, held_out, colour=1, style="dots")]


def _pictures(run: _Run) -> str:
    folder = run.folder
    during = sorted((folder / "samples").glob("step_*.png"))
    chosen = sorted({round(i) for i in np.linspace(0, len(during) - 1, MOST_GRIDS)})
    figures = [_picture(during[i], _step_of(during[i])) for i in chosen if during]
    for name in ("samples.png", "reconstructions.png"):
        figures.append(_picture(folder / name, "final"))
    drawn: list[str] = []
    for place, what in (("generated", "Drawn"), ("edited", "Edited")):
        files = [p for p in (folder / place).glob("*.png") if p.is_file()]
        newest = sorted(files, key=lambda p: p.stat().st_mtime)[-MOST_DRAWN:]
        if newest:
            drawn.append(page.heading(what))
            drawn.append(page.grid([_picture(p, p.stem) for p in newest], wide=True))
    path = _picture(folder / "denoising.png", "from noise to samples", alone=True)
    return page.grid(figures) + (page.heading("Denoising") + path if path else "") + "".join(drawn)


def _step_of(path: Path) -> str:
    number = path.stem.removeprefix("step_")
    return f"step {int(number)}" if number.isdecimal() else path.stem


def _picture(path: Path, caption: str, *, alone: bool = False) -> str:
    """A picture's figure; "" if there is none."""
    try:
        return page.picture(path.read_bytes(), caption, alone=alone)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return page.paragraph(f"{path.name} can't be read: {error.strerror}.", kind="note")


def _config(run: _Run) -> str:
    if run.config is None:
        return ""
    values, keys = flatten(run.config), schema.keys_of(run.config)
    differing = []
    for key, value in values.items():
        entry = keys.get(key)
        if entry is None or value != entry.default:
            differing.append((key, repr(value), "" if entry is None else repr(entry.default)))
    same = len(values) - len(differing)
    everything = "\n".join(f"config.{key} = {value!r}" for key, value in values.items())
    return (
        page.table(("config.", "value", "default"), differing, code=True)
        + page.paragraph(f"{same} other keys have their defaults.", kind="soft")
        + page.details("All keys", page.listing(everything))
    )


def _machine(run: _Run) -> str:
    if not run.starts:
        resumed = ", ".join(map(str, _restarts(run)))
        return page.paragraph(
            "The version of diffjax that trained this run did not record its machine."
            + (f" By its metrics, it was resumed after step {resumed}." if resumed else ""),
            kind="soft",
        )
    last = run.starts[-1]
    versions = last.get("versions")
    facts = {
        "Started": run.starts[0].get("time"),
        "Devices": f"{last.get('devices')} x {last.get('device_kind')}",
        "Processor": f"{last.get('processor')}, {last.get('cores')} cores",
        "System": last.get("system"),
        "Versions": ", ".join(f"{k} {v}" for k, v in versions.items())
        if isinstance(versions, dict)
        else None,
        "Commit": last.get("commit"),
    }
    rows = [
        (
            s.get("time", ""),
            "started" if s["step"] == 0 else f"resumed after step {s['step']}",
            f"{s.get('devices')} x {s.get('device_kind')}",
            (s.get("versions") or {}).get("diffjax", ""),
            s.get("commit") or "",
        )
        for s in run.starts
    ]
    history = page.table(("time", "", "devices", "diffjax", "commit"), rows)
    return page.facts(facts) + (page.heading("Starts") + history if rows[1:] else "")


def _data(run: _Run) -> str:
    about = run.about
    name = about.get("name") or ("" if run.config is None else run.config.data.name)
    shape = about.get("shape")
    classes = about.get("class_names") or []
    known = ""
    with _reported([]):
        known = credits.of(str(name), _place(run))
    facts = {
        "Name": name,
        "Shape": " x ".join(map(str, shape)) if isinstance(shape, list) else None,
        "Classes": f"{len(classes)}: {', '.join(map(str, classes))}" if classes else None,
        "Captions": "yes" if about.get("has_captions") else None,
        "Vocabulary": _vocabulary(about.get("vocabulary")),
    }
    if "\n" not in known:
        return page.facts(facts | {"Authors and licence": known or "not known to diffjax"})
    return page.facts(facts) + page.heading("Authors and licence") + page.listing(known)


def _vocabulary(stored: Any) -> str | None:
    """The size of a stored vocabulary."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return f"{len(json.loads(stored)['words'])} words"
    return None


def _place(run: _Run) -> str:
    """The folder of config.data.dir, or of the images of folder:<path>, where it is now."""
    if run.config is None:
        return ""
    kind, _, path = str(run.config.data.name).partition(":")
    given = path if kind == "folder" else run.config.data.dir
    if not given:
        return ""
    return origin.locate(given, run.folder, of_run=True)
