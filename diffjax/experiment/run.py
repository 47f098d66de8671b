"""Reads a stored run: its config in this version's form, and its averaged parameters.

A folder is a workdir, or one written by `--mode=export`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from diffjax.checkpoints import exported, parameters, workdir
from diffjax.checkpoints.parameters import Parameters
from diffjax.checkpoints.run_config import from_json, read_json
from diffjax.errors import UserError
from diffjax.experiment import schema
from diffjax.experiment.paths import located, without_places
from diffjax.experiment.spec import is_path

# Fields of a stored state that inference needs: of a diffusion model, of an autoencoder.
FIELDS = ("ema_params",)
STAGE_FIELDS = ("ema_params", "codebook", "scaling")


def read_config(folder: Path) -> Any:
    """`stored_config` without rematerialisation, as inference has no backward pass."""
    config = stored_config(folder)
    if config is not None and schema.is_diffusion(config) and not is_path(config.model.name):
        config.model.remat = "none"
    return config


def stored_config(folder: Path) -> Any:
    """The complete config of a run, whose paths are where they are now; None if there is none.

    Raises:
      UserError: it can't be read.
    """
    stored = read_json(folder / "config.json")
    if stored is None:
        return None
    try:
        config = schema.complete(ConfigDict(from_json(stored)))
        schema.check(config)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error
    return located(config, folder, of_run=True)


class Owner(Protocol):
    """A resolved config, and what its model depends on besides config and data."""

    @property
    def config(self) -> Any: ...
    @property
    def identity(self) -> workdir.Identity: ...


def owns(setup: Owner, folder: Path) -> bool:
    """Whether a workdir holds a run of this config to resume; nothing is written.

    Returns:
      False if it is new or empty.

    Raises:
      UserError: it holds a run of another config or identity, is a file, or can't be read.
    """
    return workdir.check(
        folder, setup.config, identity=setup.identity, complete=_as_now, comparable=without_places
    )


def _as_now(stored: dict[str, Any]) -> Any:
    """A stored config with this version's keys; unchanged if it is not a config."""
    try:
        return schema.complete(ConfigDict(from_json(stored)))
    except UserError:
        return stored


def read_model(
    folder: Path,
    *,
    wanted: str = "latest",
    fields: Sequence[str] = FIELDS,
    shapes: Callable[[], Any] | None = None,
) -> Parameters | None:
    """Fields of a stored checkpoint.

    Args:
      folder: a workdir or an exported model.
      wanted: "latest", "best", "ema" (the average rebuilt by --mode=ema) or a step.
      fields: the fields of the state to read.
      shapes: returns the parameters' shapes; called for "ema".

    Returns:
      The fields; None if there is no checkpoint at all.

    Raises:
      UserError: no such checkpoint or average, or a corrupt one.
    """
    if exported.is_exported(folder):
        if wanted != "latest":
            raise UserError(
                f"{folder} is an exported model with one set of parameters: expected checkpoint "
                f"'latest', not {wanted!r}"
            )
        return exported.read(folder, fields)
    if wanted != "ema":
        return parameters.read_parameters(folder, wanted=wanted, fields=fields)
    from diffjax.checkpoints import ema_snapshots

    latest = parameters.read_parameters(folder, wanted="latest", fields=fields)
    if latest is None:
        return None
    assert shapes is not None
    rebuilt = ema_snapshots.load_rebuilt(folder / ema_snapshots.FOLDER, shapes())
    return latest._replace(step=rebuilt.step, fields=latest.fields | {"ema_params": rebuilt.params})


def read_about(folder: Path) -> dict[str, Any] | None:
    """The data description that a run stores; None for runs of older versions."""
    if exported.is_exported(folder):
        return exported.read(folder, ()).about
    return parameters.read_about(folder)
