"""Restores a model's parameters from a workdir, and averages from its snapshots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from diffjax import ema
from diffjax.checkpoints import ema_snapshots, workdir
from diffjax.checkpoints.parameters import Parameters
from diffjax.errors import UserError
from diffjax.experiment import strategies
from diffjax.experiment.run import owns, read_model
from diffjax.progress import note_if_long


class Stored(Protocol):
    """A resolved config whose model may be stored in a workdir."""

    @property
    def config(self) -> Any:
        """The config."""
        ...

    @property
    def identity(self) -> workdir.Identity:
        """What the model depends on besides its config and data."""
        ...

    @property
    def fields(self) -> Sequence[str]:
        """The fields of a state that inference needs."""
        ...

    def parameter_shapes(self) -> Any:
        """The averaged parameters with jax.ShapeDtypeStruct for arrays."""
        ...


class Restorable(Stored, Protocol):
    """A `Stored` with the structure of its parameters."""

    def from_fields(self, fields: dict[str, Any], *, what: str) -> Any:
        """Stored fields in the structure that the model's functions take."""
        ...


def restore_params(setup: Restorable, folder: Path) -> tuple[int, Any]:
    """(step, parameters for inference) of the checkpoint config.sample.checkpoint.

    Raises:
      UserError: the workdir belongs to another config, or has no such checkpoint or average.
    """
    stored = read(setup, folder)
    params = setup.from_fields(stored.fields, what=f"the checkpoint of step {stored.step}")
    return stored.step, strategies.to_compute(params, setup.config)


def read(setup: Stored, folder: Path) -> Parameters:
    """The stored fields of the checkpoint config.sample.checkpoint.

    Raises:
      UserError: the workdir belongs to another config, or has no such checkpoint or average.
    """
    stored = None
    if owns(setup, folder):
        checkpoint = setup.config.sample.checkpoint
        with note_if_long(f"reading the checkpoint {checkpoint!r} of {folder}"):
            stored = read_model(
                folder, wanted=checkpoint, fields=setup.fields, shapes=setup.parameter_shapes
            )
    if stored is None:
        raise untrained(folder)
    return stored


def rebuild_average(setup: Stored, folder: Path) -> ema_snapshots.Rebuilt:
    """The average of config.ema, rebuilt from the snapshots of a diffusion model's run.

    Raises:
      UserError: the workdir belongs to another config, holds no run or no snapshots, or its
        snapshots do not cover the average.
    """
    config = setup.config
    ours = owns(setup, folder)
    if not config.train.ema_snapshots:
        raise UserError(
            "config.train.ema_snapshots = (): there are no snapshots to rebuild an average from: "
            "train with --config.train.ema_snapshots='(0.05, 0.1)', in a new --workdir"
        )
    if not ours:
        raise untrained(folder)
    width = config.ema.sigma_rel
    if width > ema.WIDEST:
        raise UserError(
            f"config.ema.sigma_rel = {width}: expected at most {ema.WIDEST:.4f}, the uniform mean "
            "over all steps"
        )
    return ema_snapshots.rebuild(
        folder / ema_snapshots.FOLDER,
        setup.parameter_shapes(),
        sigma_rel=width,
        step=config.ema.step or None,
    )


def untrained(folder: Path) -> UserError:
    """The error for a workdir without a checkpoint."""
    return UserError(
        f"--workdir={folder} has no checkpoint: train first, with the same command and --mode=train"
    )
