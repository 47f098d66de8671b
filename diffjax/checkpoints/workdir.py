"""The folder of a run: whose it is, and what may be told to it again."""

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffjax.checkpoints.run_config import flatten, read_json
from diffjax.errors import UserError
from diffjax.files import atomic_write

# What may differ between the run that made a workdir and the one that goes on in it.
MAY_CHANGE: tuple[str, ...] = (
    "train.steps",
    "train.accumulate",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.sample_every",
    "train.on_not_finite",
    "data.dir",
    "data.memory_limit_mb",
    "model.kernels",
    "model.remat",
    "autoencoder.kernels",
    "first_stage.",
    "parallel.",
    "sample.",
    "edit.",
    "evaluate.",
    "ema.",
    "user.",
)

IDENTITY = "identity.json"


class Identity(NamedTuple):
    """What a model was trained on beside its config and its data; "" for nothing.

    Attributes:
      first_stage: SHA-256 of the first stage's numbers.
      description: where that came from, in words; it may have moved since.
      text: of the text encoder's weights, or of the words that it knows.
    """

    first_stage: str = ""
    description: str = ""
    text: str = ""


NOTHING = Identity()


def identity_of(workdir: Path) -> Identity:
    """What the run in a workdir was trained on, as it says itself."""
    return identity_from(read_json(workdir / IDENTITY) or {})


def identity_from(stored: Mapping[str, Any]) -> Identity:
    """The inverse of `Identity._asdict`, after JSON."""
    stored = {"description": stored.get("told", ""), **stored}  # its name in version 0.1
    return Identity(**{k: str(v) for k, v in stored.items() if k in Identity._fields})


def _flat(config: Any) -> dict[str, Any]:
    """Dotted keys; tuples as lists, as JSON has them."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flatten(config).items()
    }


def check(
    workdir: Path,
    config: Any,
    *,
    identity: Identity = NOTHING,
    complete: Callable[[dict[str, Any]], Any] = lambda stored: stored,
) -> bool:
    """Whether the workdir belongs to a run of this config; nothing is written.

    Args:
      workdir: the folder.
      config: the config.
      identity: what else the model is trained on. Where a first stage lies may change, what it is
        may not.
      complete: the stored config -> the same with the keys of now, for runs of older versions.

    Returns:
      True where the workdir holds a run to go on with, False where it is new or empty.

    Raises:
      UserError: it holds a run of another config or identity, is a file, or can't be read.
    """
    try:
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"--workdir={workdir} is a file: expected a folder, or a new name")
        stored = read_json(workdir / "config.json")
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be read: {error.strerror}") from error
    if stored is None or not any((workdir / "checkpoints").glob("[0-9]*")):
        return False  # nothing to go on with: a run that died early binds nobody
    before, now = _flat(complete(stored)), _flat(config)
    free = MAY_CHANGE
    if ":" in str(now.get("model.name", "")):  # a network of the user's own has fields of its own
        free = tuple(key for key in MAY_CHANGE if not key.startswith("model."))
    other = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(free)
    ]
    if other:
        key = other[0]
        more = f" (and {len(other) - 1} more)" if other[1:] else ""
        raise UserError(
            f"--workdir={workdir} holds a run with config.{key} = {before.get(key)!r}, not "
            f"{now.get(key)!r}{more}: use another --workdir, or the config of that run"
        )
    check_identity(identity_of(workdir), identity, what=f"--workdir={workdir}")
    return True


def check_identity(trained_on: Identity, identity: Identity, *, what: str) -> None:
    """Compares what a model is resolved to with what its run was trained on.

    Args:
      trained_on: what the run says.
      identity: the first stage and the texts now.
      what: the run, for the message.

    Raises:
      UserError: it was trained on another first stage or text encoder.
    """
    if identity.first_stage != trained_on.first_stage:
        raise UserError(
            f"{what} was trained on the latents of another first stage, "
            f"{trained_on.description or 'unknown'}: name it by config.first_stage.workdir and "
            "config.first_stage.checkpoint"
        )
    if identity.text != trained_on.text:
        raise UserError(
            f"{what} was trained with another text encoder, or other words in its captions: use "
            "those of that run, or another --workdir"
        )


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
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


def prepare(workdir: Path, config: Mapping[str, Any], *, identity: Identity = NOTHING) -> None:
    """Makes the folder and writes config.json and, where there is something to tell, identity.json.

    Raises:
      UserError: the folder can't be made or written to.
    """
    text = json.dumps(config, indent=2) + "\n"
    try:
        atomic_write(workdir / "config.json", lambda file: file.write(text.encode()))
        if any(identity):
            record = json.dumps(identity._asdict(), indent=2) + "\n"
            atomic_write(workdir / IDENTITY, lambda file: file.write(record.encode()))
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} can't be written to: {error.strerror}; choose another folder"
        ) from error
