"""The run directory: which config owns it, and which keys may change on resume."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffjax.checkpoints import origin
from diffjax.checkpoints.run_config import flatten, read_json
from diffjax.errors import UserError
from diffjax.files import atomic_write

# Keys, or prefixes of keys, that may differ between a run and its continuation.
MAY_CHANGE: tuple[str, ...] = (
    "train.steps",
    "train.accumulate",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_every",
    "train.sample_every",
    "train.on_not_finite",
    "train.init_",
    "data.dir",
    "data.memory_limit_mb",
    "model.folder",
    "model.tokenizer",
    "model.kernels",
    "model.remat",
    "model.unroll",
    "autoencoder.kernels",
    "pixelcnn.kernels",
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
    """What a model was trained on besides its config and its data; "" for nothing.

    Attributes:
      first_stage: SHA-256 of the first stage's arrays.
      description: origin of the first stage, for messages; it may have moved since.
      text: SHA-256 of the text encoder's weights, or of its vocabulary.
      embedding: of the image embedding; see `image_embedding.Fitted`.
      base: of the parameters that adapters were trained on.
    """

    first_stage: str = ""
    description: str = ""
    text: str = ""
    embedding: str = ""
    base: str = ""


NOTHING = Identity()


def identity_of(workdir: Path) -> Identity:
    """The identity stored in a workdir."""
    return identity_from(read_json(workdir / IDENTITY) or {})


def identity_from(stored: Mapping[str, Any]) -> Identity:
    """The inverse of `Identity._asdict`, after JSON."""
    stored = {"description": stored.get("told", ""), **stored}  # its name in version 0.1
    return Identity(**{k: str(v) for k, v in stored.items() if k in Identity._fields})


def _flat(config: Any) -> dict[str, Any]:
    """Dotted keys; tuples as lists, as JSON stores them."""
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
    comparable: Callable[[dict[str, Any]], dict[str, Any]] = lambda flat: flat,
) -> bool:
    """Whether the workdir belongs to a run of this config; nothing is written.

    Args:
      workdir: the folder.
      config: the config.
      identity: what else the model is trained on. A first stage may move, but not change.
      complete: stored config -> the same with the current keys, for runs of older versions.
      comparable: flat config -> the same without what may differ, such as the place of the data.

    Returns:
      True if the workdir holds a run to resume, False if it is new or empty.

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
        return False  # no checkpoint to resume from
    before, now = _flat(complete(stored)), _flat(config)
    free = MAY_CHANGE
    if ":" in str(now.get("model.name", "")):  # a user's network defines its own model.* keys
        free = tuple(key for key in MAY_CHANGE if not key.startswith("model."))
    theirs, ours = comparable(before), comparable(now)
    other = [
        key
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key) and not key.startswith(free)
    ]
    if other:
        key = other[0]
        more = f" (and {len(other) - 1} more)" if other[1:] else ""
        raise UserError(
            f"--workdir={workdir} holds a run with config.{key} = {before.get(key)!r}, not "
            f"{now.get(key)!r}{more}: use the config of that run, --config={workdir}, or start a "
            f"new run, from its weights with another --workdir and "
            f"--config.train.init_from={workdir}"
        )
    check_identity(identity_of(workdir), identity, what=f"--workdir={workdir}")
    return True


def check_identity(trained_on: Identity, identity: Identity, *, what: str) -> None:
    """Compares the current first stage, text encoder and image embedding with those of the run.

    Args:
      trained_on: the run's.
      identity: the current ones.
      what: the run, for the message.

    Raises:
      UserError: it was trained on another first stage, text encoder or image embedding.
    """
    if identity.first_stage != trained_on.first_stage:
        raise UserError(
            f"{what} was trained on the latents of another first stage, "
            f"{trained_on.description or 'unknown'}: set config.first_stage.workdir and "
            "config.first_stage.checkpoint to it"
        )
    if identity.text != trained_on.text:
        raise UserError(
            f"{what} was trained with another text encoder or vocabulary: use those of that run, "
            "or another --workdir, with config.train.init_from to start from its weights"
        )
    if identity.embedding != trained_on.embedding:
        raise UserError(
            f"{what} was trained with another image embedding (other weights, training images or "
            "dimensions): use that of the run, or another --workdir"
        )
    if identity.base != trained_on.base:
        raise UserError(
            f"{what} has adapters of other weights than those of config.model.folder: set it to "
            "the folder that they were trained on"
        )


def prepare(workdir: Path, config: Mapping[str, Any], *, identity: Identity = NOTHING) -> None:
    """Creates the folder and writes config.json, origin.json and, with an identity, identity.json.

    Raises:
      UserError: the folder can't be created or written to.
    """
    text = json.dumps(config, indent=2) + "\n"
    try:
        origin.record(workdir)
        atomic_write(workdir / "config.json", lambda file: file.write(text.encode()))
        if any(identity):
            record = json.dumps(identity._asdict(), indent=2) + "\n"
            atomic_write(workdir / IDENTITY, lambda file: file.write(record.encode()))
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} can't be written to: {error.strerror}; choose another folder"
        ) from error
