"""What a workdir's checkpoint holds of a model."""

from pathlib import Path
from typing import Any, Protocol

import jax

from diffjax.errors import UserError
from diffjax.training import workdir
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
      UserError: the workdir belongs to another config or has no such checkpoint.
    """
    found = None
    if workdir.check(folder, setup.config, identity=setup.identity):
        found = restore(folder, setup.state_shapes(), wanted=setup.config.sample.checkpoint)
    if found is None:
        raise UserError(
            f"--workdir={folder} has no checkpoint: train first, with the same command and "
            "--mode=train"
        )
    return found.step, jax.device_put(setup.frozen(found.state))


def restore(folder: Path, like: Any, *, wanted: str) -> Restored | None:
    """The checkpoint "latest", "best" or of a step; None where there is none at all."""
    checkpoints = Checkpoints(folder, read_only=True)
    step = {"latest": None, "best": checkpoints.best_step()}.get(wanted)
    if wanted.isdecimal():
        step = int(wanted)
    found = checkpoints.restore(like, step=step)
    checkpoints.close()
    return found
