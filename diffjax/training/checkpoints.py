"""Checkpoints by orbax: the whole state and the data's position, the last three and the best."""

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from diffjax.errors import UserError

KEEP_LAST = 3


class Restored(NamedTuple):
    """A checkpoint's content; `state` holds NumPy arrays, `data` the batch iterator's position."""

    step: int
    state: Any
    data: dict[str, Any]


class Checkpoints:
    """The checkpoints of one workdir, under <workdir>/checkpoints/<step>.

    orbax writes to a folder with another name and renames it at the end, so a run that dies while
    it saves leaves the checkpoints before it whole.
    """

    def __init__(self, workdir: str | Path, *, read_only: bool = False) -> None:
        """Opens or makes the folder.

        Args:
          workdir: the run's folder.
          read_only: for whoever only restores: a run that is saving there is not disturbed.
        """
        self._folder = Path(workdir).resolve() / "checkpoints"
        policy = policies.AnyPreservationPolicy(
            [
                policies.LatestN(KEEP_LAST),
                policies.BestN(
                    get_metric_fn=_loss,
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        with _as_user_error(f"can't open {self._folder}"):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policy,
                    best_fn=_loss,  # without it orbax does not write the metrics
                    best_mode="min",
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    enable_async_checkpointing=True,
                ),
                item_names=("state", "data"),
            )

    def save(self, step: int, state: Any, data: dict[str, Any], *, loss: float) -> None:
        """Saves in the background; the arrays are copied before it returns.

        Args:
          step: updates made.
          state: a pytree of arrays.
          data: the batch iterator's position.
          loss: what "the best" is told by; lower is better.

        Raises:
          UserError: the checkpoint before could not be written.
        """
        copy = jax.tree.map(lambda x: np.array(x, copy=True), state)
        with _as_user_error(f"can't write a checkpoint of step {step} to {self._folder}"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(copy), data=ocp.args.JsonSave(data)
                ),
                metrics={"loss": float(loss)},
                force=True,
            )

    def wait(self) -> None:
        """Returns when the last save is on the disk.

        Raises:
          UserError: it could not be written.
        """
        with _as_user_error(f"can't write a checkpoint to {self._folder}"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, rising."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest loss among those kept; None without any."""
        return self._manager.best_step()

    def restore(self, like: Any, *, step: int | None = None) -> Restored | None:
        """The latest checkpoint, or that of `step`; None when there is none.

        Args:
          like: a state of the structure and shapes to expect.
          step: which one, by default the latest.

        Raises:
          UserError: no checkpoint of that step, or one of another structure.
        """
        steps = self.steps()
        if not steps:
            return None
        step = steps[-1] if step is None else step
        if step not in steps:
            raise UserError(
                f"there is no checkpoint of step {step} in {self._folder}: take one of {steps}"
            )
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            raise UserError(
                f"the checkpoint {self._folder / str(step)} can't be read for this config "
                f"({_first_line(error)}): remove that folder to go on from the one before it, or "
                "use another --workdir"
            ) from error
        state = found["state"]
        for wanted, leaf in zip(jax.tree.leaves(like), jax.tree.leaves(state), strict=True):
            if wanted.shape != leaf.shape:
                raise UserError(
                    f"the checkpoint {self._folder / str(step)} has an array of {leaf.shape} where "
                    f"this config has {wanted.shape}: use the config and data of that run, or "
                    "another --workdir"
                )
        return Restored(step, state, found["data"])

    def close(self) -> None:
        """Waits for the last save and ends orbax's threads."""
        with _as_user_error(f"can't write a checkpoint to {self._folder}"):
            self._manager.close()


def _loss(metrics: dict[str, float]) -> float:
    return metrics["loss"]


def _reason(error: BaseException) -> str:
    """What the system said, picked from tensorstore's account of it where it is in there."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def _as_user_error(what: str) -> Any:
    """Turns what disks do (full, read-only, gone) into one line.

    tensorstore reports them as ValueError or as its own types, so the net is wide.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{what}: {_reason(error)}; checkpoints written before are untouched: "
            "free space or use another --workdir, and run the same command again"
        ) from error


def read_json(path: Path) -> Any:
    """A JSON file's content, or None where there is no file.

    Raises:
      UserError: the file is not JSON.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): remove it or use another --workdir"
        ) from None
