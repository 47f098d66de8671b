"""What a workdir holds of a model: its parameters, and the average rebuilt from snapshots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from diffjax import ema
from diffjax.checkpoints import ema_snapshots, workdir
from diffjax.checkpoints.parameters import Parameters
from diffjax.errors import UserError
from diffjax.experiment import strategies
from diffjax.experiment.run import owns, read_model


class Stored(Protocol):
    """A resolved config whose model may be stored."""

    @property
    def config(self) -> Any:
        """The config."""
        ...

    @property
    def identity(self) -> workdir.Identity:
        """What it is trained on beside the config and the data."""
        ...

    @property
    def fields(self) -> Sequence[str]:
        """The fields of a state that are kept when training is over."""
        ...

    def parameter_shapes(self) -> Any:
        """The averaged parameters in shapes."""
        ...


class Restorable(Stored, Protocol):
    """One that knows the structure of its parameters."""

    def from_fields(self, fields: dict[str, Any], *, what: str) -> Any:
        """Those fields, as they are stored, in the structure that the model's functions take."""
        ...


def restore_params(setup: Restorable, folder: Path) -> tuple[int, Any]:
    """(step, what is kept of the state) of the checkpoint that config.sample.checkpoint names.

    Raises:
      UserError: the workdir belongs to another config, or has no such checkpoint or average.
    """
    found = read(setup, folder)
    params = setup.from_fields(found.fields, what=f"the checkpoint of step {found.step}")
    return found.step, strategies.to_compute(params, setup.config)


def read(setup: Stored, folder: Path) -> Parameters:
    """The stored fields of the checkpoint that config.sample.checkpoint names.

    Raises:
      UserError: the workdir belongs to another config, or has no such checkpoint or average.
    """
    found = None
    if owns(setup, folder):
        wanted = setup.config.sample.checkpoint
        found = read_model(
            folder, wanted=wanted, fields=setup.fields, shapes=setup.parameter_shapes
        )
    if found is None:
        raise untrained(folder)
    return found


def rebuild_average(setup: Stored, folder: Path) -> ema_snapshots.Rebuilt:
    """The average that config.ema names, from the snapshots of a diffusion model's run.

    Raises:
      UserError: the workdir belongs to another config, holds no run or no snapshots, or the average
        can't be had from those.
    """
    config = setup.config
    ours = owns(setup, folder)
    if not config.train.ema_snapshots:
        raise UserError(
            "config.train.ema_snapshots = (): nothing is stored that an average could be rebuilt "
            "from: train with --config.train.ema_snapshots='(0.05, 0.1)', in a new --workdir"
        )
    if not ours:
        raise untrained(folder)
    width = config.ema.sigma_rel
    if width > ema.WIDEST:
        raise UserError(
            f"config.ema.sigma_rel = {width}: expected at most {ema.WIDEST:.4f}, which is the mean "
            "of all parameters so far"
        )
    return ema_snapshots.rebuild(
        folder / ema_snapshots.FOLDER,
        setup.parameter_shapes(),
        sigma_rel=width,
        step=config.ema.step or None,
    )


def untrained(folder: Path) -> UserError:
    """For a workdir without a checkpoint."""
    return UserError(
        f"--workdir={folder} has no checkpoint: train first, with the same command and --mode=train"
    )
