"""The folder of a run: whose it is, and what may be told to it again."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffjax.errors import UserError
from diffjax.files import atomic_write
from diffjax.training.checkpoints import read_json
from diffjax.training.config import flatten

# What may differ between the run that made a workdir and the one that goes on in it.
FREE = (
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.sample_every",
    "data.dir",
    "data.memory_limit_mb",
    "model.kernels",
    "autoencoder.kernels",
    "first_stage.tile",
    "sample.",
    "edit.",
    "evaluate.",
)


def _flat(config: Any) -> dict[str, Any]:
    """Dotted keys; tuples as lists, as JSON has them."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flatten(config).items()
    }


def check(workdir: Path, config: Any) -> bool:
    """Whether the workdir belongs to a run of this config; nothing is written.

    Returns:
      True where the workdir holds a run to go on with, False where it is new or empty.

    Raises:
      UserError: it holds a run of another config, is a file, or can't be read.
    """
    try:
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir={workdir} is a file: expected a folder, or a new name")
        stored = read_json(workdir / "config.json")
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be read: {error.strerror}") from error
    if stored is None or not any((workdir / "checkpoints").glob("[0-9]*")):
        return False  # nothing to go on with: a run that died early binds nobody
    before, now = _flat(stored), _flat(config)
    other = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE)
    ]
    if other:
        key = other[0]
        more = f" (and {len(other) - 1} more)" if other[1:] else ""
        raise UserError(
            f"--workdir={workdir} holds a run with config.{key} = {before.get(key)!r}, not "
            f"{now.get(key)!r}{more}: use another --workdir, or the config of that run"
        )
    return True


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Holds the workdir for one training; the system lets go of it however the process ends.

    Raises:
      UserError: another training holds it, or the folder can't be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} can't be written to: {error.strerror}; choose another folder"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--workdir={workdir} is in use by another training: wait for it, or use another"
            ) from None
        yield


def prepare(workdir: Path, config: Any) -> None:
    """Makes the folder and writes config.json.

    Raises:
      UserError: the folder can't be made or written to.
    """
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    try:
        atomic_write(workdir / "config.json", lambda file: file.write(text.encode()))
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} can't be written to: {error.strerror}; choose another folder"
        ) from error
