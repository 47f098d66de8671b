"""What a workdir holds of a model: its checkpoints, and the average rebuilt from snapshots."""

from pathlib import Path
from typing import Any, Protocol

from diffjax import ema
from diffjax.errors import UserError
from diffjax.training import ema_snapshots, strategies, workdir
from diffjax.training.checkpoints import Checkpoints, Restored


class Restorable(Protocol):
    """A resolved config."""

    @property
    def config(self) -> Any:
        """The config."""
        ...

    @property
    def identity(self) -> workdir.Identity:
        """What it is trained on beside the config and the data."""
        ...

    def state_shapes(self) -> Any:
        """The state with shapes for arrays."""
        ...

    def frozen(self, state: Any) -> Any:
        """What is kept of a state when training is over."""
        ...


def restore_frozen(setup: Restorable, folder: Path) -> tuple[int, Any]:
    """(step, what is kept of the state) of the checkpoint that config.sample.checkpoint names.

    Raises:
      UserError: the workdir belongs to another config, or has no such checkpoint or average.
    """
    found = None
    if workdir.check(folder, setup.config, identity=setup.identity):
        found = restore(folder, setup.state_shapes(), wanted=setup.config.sample.checkpoint)
    if found is None:
        raise _untrained(folder)
    return found.step, strategies.to_compute(setup.frozen(found.state), setup.config)


def restore(folder: Path, like: Any, *, wanted: str) -> Restored | None:
    """The checkpoint "latest", "best" or of a step; None where there is none at all.

    "latest" is the latest whole one; in place of another that is damaged none is taken.

    "ema" is the latest one with the rebuilt average for `ema_params`, and with that one's step.

    Raises:
      UserError: no such checkpoint, nothing rebuilt, or what is of another structure.
    """
    if wanted == "ema":
        rebuilt = ema_snapshots.load_rebuilt(folder / ema_snapshots.FOLDER, like.ema_params)
        latest = restore(folder, like, wanted="latest")
        return latest and latest._replace(
            step=rebuilt.step, state=latest.state._replace(ema_params=rebuilt.params)
        )
    checkpoints = Checkpoints(folder, read_only=True)
    step = checkpoints.best_step() if wanted == "best" else None
    if wanted.isdecimal():
        step = int(wanted)
    found = checkpoints.restore(like, step=step)
    checkpoints.close()
    return found


def rebuild_average(setup: Restorable, folder: Path) -> ema_snapshots.Rebuilt:
    """The average that config.ema names, from the snapshots of a diffusion model's run.

    Raises:
      UserError: the workdir belongs to another config, holds no run or no snapshots, or the average
        can't be had from those.
    """
    config = setup.config
    ours = workdir.check(folder, config, identity=setup.identity)
    if not config.train.ema_snapshots:
        raise UserError(
            "config.train.ema_snapshots = (): nothing is stored that an average could be rebuilt "
            "from: train with --config.train.ema_snapshots='(0.05, 0.1)', in a new --workdir"
        )
    if not ours:
        raise _untrained(folder)
    width = config.ema.sigma_rel
    if width > ema.WIDEST:
        raise UserError(
            f"config.ema.sigma_rel = {width}: expected at most {ema.WIDEST:.4f}, which is the mean "
            "of all parameters so far"
        )
    return ema_snapshots.rebuild(
        folder / ema_snapshots.FOLDER,
        setup.state_shapes().ema_params,
        sigma_rel=width,
        step=config.ema.step or None,
    )


def _untrained(folder: Path) -> UserError:
    return UserError(
        f"--workdir={folder} has no checkpoint: train first, with the same command and --mode=train"
    )
