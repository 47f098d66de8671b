"""What is stored of a run: its config as this version has it, and the parameters that it averaged.

A folder is a workdir, or what `--mode=export` wrote.
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
from diffjax.experiment.spec import is_path

FIELDS = ("ema_params",)  # of a diffusion model's state, for whoever samples it
STAGE_FIELDS = ("ema_params", "codebook", "scaling")  # of an autoencoder's


def read_config(folder: Path) -> Any:
    """The config of a run, complete; None where there is none.

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
    if not schema.is_autoencoder(config) and not is_path(config.model.name):
        config.model.remat = "none"  # whoever reads a run goes forwards only
    return config


class Owner(Protocol):
    """A resolved config, and what else its model was trained on."""

    @property
    def config(self) -> Any: ...
    @property
    def identity(self) -> workdir.Identity: ...


def owns(setup: Owner, folder: Path) -> bool:
    """Whether a workdir holds a run of this config to go on with; nothing is written.

    Returns:
      False where it is new or empty.

    Raises:
      UserError: it holds a run of another config or identity, is a file, or can't be read.
    """
    return workdir.check(folder, setup.config, identity=setup.identity, complete=_as_now)


def _as_now(stored: dict[str, Any]) -> Any:
    """A stored config with this version's keys; as it is where it is no config."""
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
    """Fields of the checkpoint "latest", "best", "ema" (what --mode=ema rebuilt) or of a step.

    Args:
      folder: the run's, or an exported model's.
      wanted: which checkpoint.
      fields: of its state.
      shapes: of the parameters, as the network makes them; called for "ema".

    Returns:
      None where there is no checkpoint at all.

    Raises:
      UserError: no such checkpoint or average, or a damaged one.
    """
    if exported.is_exported(folder):
        if wanted != "latest":
            raise UserError(
                f"{folder} is an exported model, with one set of parameters: not {wanted}"
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
    """What a run knows of its data; None where it says nothing, as those of older versions."""
    if exported.is_exported(folder):
        return exported.read(folder, ()).about
    return parameters.read_about(folder)
