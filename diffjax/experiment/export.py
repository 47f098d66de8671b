"""Exports a trained model to a folder that needs no workdir, orbax or data."""

import logging
from pathlib import Path
from typing import Any

from diffjax.checkpoints import exported, origin
from diffjax.errors import UserError
from diffjax.experiment import restore
from diffjax.experiment.load import about_of
from diffjax.experiment.model import kept, resolve_model
from diffjax.experiment.paths import names_a_path
from diffjax.experiment.run import STAGE_FIELDS, read_config, read_model
from diffjax.experiment.schema import is_autoencoder
from diffjax.experiment.spec import parse_spec
from diffjax.files import expanded

_logger = logging.getLogger("diffjax")


def export(config: Any, workdir: Path, out: Path) -> list[Path]:
    """Writes model.safetensors, config.json, and a latent model's first stage, for `load`.

    Args:
      config: complete; config.sample.checkpoint selects the parameters.
      workdir: the run directory.
      out: a new or empty folder.

    Returns:
      The written files.

    Raises:
      UserError: no such run, or a folder that is not empty or not writable.
    """
    out = expanded(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is not empty: give a new folder")
    if is_autoencoder(config):
        return _stage(workdir, out, wanted=config.sample.checkpoint)
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        raise restore.untrained(workdir)
    model = resolve_model(config, about_of(workdir, config))
    found = restore.read(model, workdir)
    about = model.about
    if model.conditions.texts is not None:
        about = about._replace(vocabulary=model.conditions.texts.vocabulary)
    stored = config.copy_and_resolve_references()
    stored.sample.checkpoint = "latest"
    written = []
    if config.first_stage.workdir:
        stage = expanded(config.first_stage.workdir)
        written += _stage(stage, out / exported.FIRST_STAGE, wanted=config.first_stage.checkpoint)
        stored.first_stage.workdir, stored.first_stage.checkpoint = exported.FIRST_STAGE, "latest"
    if is_guided_by_another(config):
        _logger.info(
            "config.sample.guidance = %r needs another run, which is not exported: 'none' is "
            "stored instead", config.sample.guidance,
        )  # fmt: skip
        stored.sample.guidance = "none"
    found = found._replace(about=kept(about, model.identity))
    if names_a_path(config.condition.text, key="condition.text") or model.folder is not None:
        origin.record(out)  # a relative path is one from this working folder
    return written + exported.write(out, found, stored.to_dict())


def is_guided_by_another(config: Any) -> bool:
    """Whether sampling needs another run's model."""
    return parse_spec(config.sample.guidance, key="sample.guidance").path == "autoguidance"


def _stage(workdir: Path, out: Path, *, wanted: str) -> list[Path]:
    config = read_config(workdir)
    found = None if config is None else read_model(workdir, wanted=wanted, fields=STAGE_FIELDS)
    if found is None:
        raise restore.untrained(workdir)
    config.sample.checkpoint = "latest"
    return exported.write(out, found, config.to_dict())
