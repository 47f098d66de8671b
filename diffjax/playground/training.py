"""The panel "training": a run's metrics as they are written, and its grids of samples."""

import json
import re
import time
from typing import Any

from diffjax.errors import UserError
from diffjax.playground.runs import Run, Runs
from diffjax.playground.values import Values

GRID = re.compile(r"step_\d{1,12}\.png")
LARGEST_PART = 4 * 2**20
LARGEST_GRID = 64 * 2**20


def since(values: Values, runs: Runs) -> dict[str, Any]:
    """What a run has written to metrics.jsonl from a place on, and the names of its grids.

    Args:
      values: run; start, a place in the file in bytes.
      runs: all runs.

    Returns:
      records, of whole lines; next, the place to go on from; restarted, whether the file is now
      shorter than `start`, so that the records are from its beginning; age, the seconds since it
      was written to, or None; grids, in order.

    Raises:
      UserError: no such run, or files that can't be read.
    """
    values.known(("run", "start"))
    run = runs[values.raw("run")]
    start = values.whole("start", 0, most=2**53)
    path = run.folder / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    restarted, age = False, None
    try:
        if path.is_file():
            _within(run, path)
            age = max(0.0, time.time() - path.stat().st_mtime)
            with path.open("rb") as file:
                size = file.seek(0, 2)
                restarted = size < start
                start = 0 if restarted else start
                file.seek(start)
                part = file.read(LARGEST_PART)
            whole = part[: part.rfind(b"\n") + 1]
            start += len(whole)
            records = [record for line in whole.splitlines() if (record := _record(line))]
        folder = run.folder / "samples"
        found = folder.iterdir() if folder.is_dir() else ()
        grids = sorted(f.name for f in found if GRID.fullmatch(f.name))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    return {
        "records": records, "next": start, "restarted": restarted, "age": age, "grids": grids,
    }  # fmt: skip


def grid(run: Run, name: str) -> bytes:
    """A grid of samples that a run wrote: a PNG file.

    Raises:
      UserError: another name, or no such file below the run's folder.
    """
    if not GRID.fullmatch(name):
        raise UserError(f"{name[:60]!r} is no grid of samples: expected for example step_100.png")
    path = run.folder / "samples" / name
    try:
        _within(run, path)
        if path.stat().st_size > LARGEST_GRID:
            raise UserError(f"{name} is larger than {LARGEST_GRID // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error


def _within(run: Run, path: Any) -> None:
    """Refuses a link that leads out of the run's folder."""
    if not path.resolve().is_relative_to(run.folder):
        raise UserError(f"{path.name} is a link to a file outside {run.name}")


def _record(line: bytes) -> dict[str, Any] | None:
    """The finite numbers of a line of metrics; None for what is no record."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        return None
    kept = {k: v for k, v in found.items() if isinstance(v, int | float) and abs(v) < 1e300}
    return kept
