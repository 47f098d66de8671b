"""The paths in a config: first stage, data, text encoder, guiding model, Stable Diffusion."""

import logging
import os
from pathlib import Path
from typing import Any

from diffjax.checkpoints import origin
from diffjax.errors import UserError
from diffjax.experiment.spec import parse_spec
from diffjax.files import expanded

# Arguments of a config string that are paths.
_ARGUMENTS = ("folder", "workdir", "file", "dir")
_SPECS = (
    "condition.text", "sample.guidance", "loss.perceptual", "evaluate.features", "data.embedding",
    "condition.embedding",
)  # fmt: skip
# Those whose weights are compared.
_COMPARED = ("condition.text", "data.embedding", "condition.embedding")
# Folders whose arrays, or whose files, are compared.
_PLACES = ("first_stage.workdir", "model.folder", "model.tokenizer", "data.prior")
_TEACHER = "diffusion.teacher"
_FOLDER = "folder:"

_logger = logging.getLogger("diffjax")


def located(config: Any, workdir: Path, *, of_run: bool) -> Any:
    """A config whose paths are where `origin` finds them; the config itself if nothing has moved.

    Args:
      config: complete.
      workdir: the run's folder.
      of_run: whether it is the run's stored config; otherwise it was given now.
    """
    if not (workdir / origin.ORIGIN).is_file():
        return config
    changes = {}
    for key in ("data.dir", "data.name", *_SPECS, *_PLACES, _TEACHER):
        section, name = key.split(".")
        if section not in config or name not in config[section]:
            continue
        text = config[section][name]
        if isinstance(text, str) and text:
            moved = _moved(key, text, workdir, of_run)
            if moved != text:
                changes[key] = moved
    if not changes:
        return config
    config = config.copy_and_resolve_references()
    for key, value in changes.items():
        section, name = key.split(".")
        _logger.info("config.%s = %r has moved: reading %r", key, config[section][name], value)
        config[section][name] = value
    return config


def _moved(key: str, text: str, workdir: Path, of_run: bool) -> str:
    if key == "data.name" and text.startswith(_FOLDER):
        path = text.removeprefix(_FOLDER)
        return _FOLDER + origin.locate(path, workdir, of_run=of_run)
    if key == _TEACHER:
        path, at, checkpoint = text.rpartition("@")
        found = origin.locate(path if at else checkpoint, workdir, of_run=of_run)
        return f"{found}{at}{checkpoint}" if at else found
    if key == "data.dir" or key in _PLACES:
        return origin.locate(text, workdir, of_run=of_run)
    try:
        spec = parse_spec(text, key=key)
    except UserError:  # tfds:<name>, or a mistake that is reported where the string is used
        return text
    paths = {k: v for k, v in spec.arguments.items() if k in _ARGUMENTS and isinstance(v, str)}
    moved = {k: origin.locate(v, workdir, of_run=of_run) for k, v in paths.items()}
    if moved == paths:
        return text
    arguments = ", ".join(f"{k}={v!r}" for k, v in (spec.arguments | moved).items())
    return f"{spec.path}({arguments})"


def check_apart(config: Any, workdir: Path) -> None:
    """Checks that the workdir is not the folder of the images, which it would add pictures to.

    Raises:
      UserError: it is.
    """
    name = config.data.name
    place = name.removeprefix(_FOLDER) if name.startswith(_FOLDER) else config.data.dir
    if place and os.path.realpath(expanded(place)) == os.path.realpath(workdir):
        raise UserError(
            f"--workdir={workdir} is the folder of the data: a run's pictures would be taken for "
            "data; give another folder, which may be within it"
        )


def names_a_path(text: str, *, key: str) -> bool:
    """Whether a config string has an argument that is a path, as in "clip(folder=...)"."""
    return any(name in parse_spec(text, key=key).arguments for name in _ARGUMENTS)


def without_places(config: dict[str, Any]) -> dict[str, Any]:
    """A flat config without the places of what it names, which may move.

    A data set's files, a first stage's arrays and a text encoder's weights are compared instead. Of
    other files and folders, whose content is not compared, the name is kept.
    """
    flat = dict(config)
    name = flat.get("data.name")
    if isinstance(name, str) and name.startswith(_FOLDER):
        flat["data.name"] = _FOLDER
    if flat.get("data.prior"):
        flat["data.prior"] = _FOLDER
    if flat.get(_TEACHER):
        flat[_TEACHER] = Path(str(flat[_TEACHER])).name
    for key in ("data.name", *_SPECS):
        text = flat.get(key)
        if not isinstance(text, str) or not any(f"{name}=" in text for name in _ARGUMENTS):
            continue
        try:
            spec = parse_spec(text, key=key)
        except UserError:
            continue
        kept = dict(spec.arguments)
        for argument in kept.keys() & set(_ARGUMENTS):
            kept[argument] = "" if key in _COMPARED else Path(str(kept[argument])).name
        flat[key] = (spec.path, sorted(kept.items(), key=lambda item: item[0]))
    return flat
