"""Where the paths of a run's config are, also after the run or what they name has moved.

A config's relative paths are relative to the working folder that training was started in. The
workdir keeps that folder in origin.json, with its own place at that time: so a path can be looked
for where it was, and where it is now if it has moved together with the run.
"""

import json
import os
from pathlib import Path

from diffjax.checkpoints.run_config import read_json
from diffjax.files import atomic_write, expanded

ORIGIN = "origin.json"


def record(workdir: Path) -> None:
    """Writes origin.json.

    Raises:
      UserError: the folder can't be written to.
    """
    content = {"workdir": os.path.abspath(workdir), "working_folder": os.getcwd()}
    text = json.dumps(content, indent=2) + "\n"
    atomic_write(workdir / ORIGIN, lambda file: file.write(text.encode(errors="surrogateescape")))


def candidates(path: str, workdir: Path, *, of_run: bool) -> list[Path]:
    """The places where a path of a run's config may be, the most likely first.

    Args:
      path: as the config has it; ~ and variables are expanded.
      workdir: where the run is now.
      of_run: whether the path is from the run's stored config; otherwise it was given now, and a
        relative one is first looked for from the present working folder.
    """
    given = expanded(path)
    found = read_json(workdir / ORIGIN) or {}
    then, at = found.get("working_folder"), found.get("workdir")
    if not isinstance(then, str) or not isinstance(at, str):
        return [given]
    before = os.path.join(then, given)
    together = Path(os.path.normpath(workdir.absolute() / os.path.relpath(before, at)))
    if of_run and not given.is_absolute():
        return [together, Path(before), given]
    return [given, together, Path(before)]


def locate(path: str, workdir: Path, *, of_run: bool) -> str:
    """The path where it exists now; unchanged if it exists as it is, or nowhere."""
    given = expanded(path)
    for place in candidates(path, workdir, of_run=of_run):
        if place.exists():
            same = given.exists() and os.path.samefile(place, given)
            return path if same else str(place)
    return path
