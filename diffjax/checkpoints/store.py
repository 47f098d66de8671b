"""Checkpoints by orbax: the train state and the data position, the last three and the best.

Each holds checksums of its arrays (`checksums`), which are verified on reading. If the newest
checkpoint is damaged, a warning is logged and the newest intact one is used; a checkpoint requested
by its step is that one or an error.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffjax.checkpoints import checksums
from diffjax.checkpoints.checksums import Damaged, Manifest
from diffjax.checkpoints.free_memory import malloc_trim
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.files import is_utf8

KEEP_LAST = 3
CHECKSUMS = "checksums"  # an item of a checkpoint; those of older versions lack it
ABOUT = "about"  # likewise: description of the training data

_logger = logging.getLogger("diffjax")


class Restored(NamedTuple):
    """A checkpoint's content; `state` holds NumPy arrays, `data` the batch iterator's position."""

    step: int
    state: Any
    data: dict[str, Any]


class Checkpoints:
    """The checkpoints of one workdir, under <workdir>/checkpoints/<step>.

    orbax writes to a temporary folder and renames it at the end, so a run that dies while saving
    leaves earlier checkpoints intact. Saving runs in a thread, one checkpoint at a time; the next
    save waits for it. A failed save is a warning, since a disk may be full only briefly; a second
    one in a row, or a failure of the last, is an error.
    """

    def __init__(
        self, workdir: str | Path, *, read_only: bool = False, keep_every: int = 0
    ) -> None:
        """Opens or makes the folder.

        Args:
          workdir: the run's folder.
          read_only: for restoring only, also while another process is saving there; damaged
            checkpoints are not renamed.
          keep_every: steps between checkpoints that are kept besides the last and the best; 0 for
            none.

        Raises:
          UserError: the folder can't be read or made.
        """
        self._folder = Path(workdir).resolve() / "checkpoints"
        if not is_utf8(self._folder):  # tensorstore takes no other paths
            raise UserError(
                f"--workdir={workdir}: the path is not UTF-8, and checkpoints can't be written "
                "there; choose another folder, or set LC_ALL=C.UTF-8 if it looks right"
            )
        self._read_only = read_only
        self._writer: threading.Thread | None = None
        self._failures: list[UserError] = []  # of the last saves, in a row
        self._losses: dict[int, float | None] = {}  # None where it can't be read
        with _as_user_error(f"can't open {self._folder}"):
            if not read_only:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_LastAndBest(self.best_step, keep_every),
                    create=False,
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    enable_async_checkpointing=False,  # `save` has its own thread
                    multiprocessing_options=_by_itself(),
                ),
                item_names=("state", "data", CHECKSUMS, ABOUT),
            )
        if not read_only:
            self.best_step()  # reads the losses, which the policy needs while saving

    def save(
        self,
        step: int,
        state: Any,
        data: dict[str, Any],
        *,
        loss: float,
        about: dict[str, Any] | None = None,
        before: Callable[[Any], object] | None = None,
    ) -> None:
        """Saves in the background; the arrays are copied before it returns.

        Waits for the previous save to finish, so no requested checkpoint is skipped on a slow disk.

        Args:
          step: updates made.
          state: a pytree of arrays.
          data: the batch iterator's position.
          loss: held-out loss used to select the best checkpoint; lower is better.
          about: description of the training data, for loading a model without it.
          before: called with the copy before the checkpoint is written, for files that go with it.

        Raises:
          UserError: the last two saves both failed.
        """
        if self._writer is not None and self._writer.is_alive():
            _logger.info("step %d: waiting for the previous checkpoint to be written", step)
        self._join()
        if len(self._failures) > 1:
            raise self._failures[-1]
        copy = jax.tree.map(lambda x: np.array(x, copy=True), state)
        self._writer = threading.Thread(
            target=self._write, args=(step, copy, data, loss, about, before), name="checkpoint"
        )
        self._writer.start()

    def _write(
        self,
        step: int,
        state: Any,
        data: dict[str, Any],
        loss: float,
        about: dict[str, Any] | None,
        before: Callable[[Any], object] | None,
    ) -> None:
        try:
            with _as_user_error(f"can't write a checkpoint of step {step} to {self._folder}"):
                if before is not None:
                    before(state)
                self._losses[step] = float(loss)
                manifest = checksums.manifest(state, data, loss=loss, about=about)
                items = {
                    "state": ocp.args.StandardSave(state),
                    "data": ocp.args.JsonSave(data),
                    CHECKSUMS: ocp.args.JsonSave(manifest),
                }
                if about is not None:
                    items[ABOUT] = ocp.args.JsonSave(about)
                self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            self._failures = []
        except UserError as error:
            # An incomplete checkpoint would keep the disk full.
            for half in self._folder.glob(f"{step}.*tmp*"):
                shutil.rmtree(half, ignore_errors=True)
            if not self._failures:
                _logger.warning("warning: %s; training continues until the next one", error)
            self._failures.append(error)
        malloc_trim()

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def wait(self) -> None:
        """Waits for the last save.

        Raises:
          UserError: it failed.
        """
        self._join()
        if self._failures:
            raise self._failures[-1]

    def steps(self) -> list[int]:
        """The steps of all finished checkpoints, ascending; they may be damaged."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest loss among those kept; None without any."""
        for step in self.steps():
            if step not in self._losses:
                self._losses[step] = self._read_loss(step)
        losses = {step: self._losses[step] for step in self.steps()}
        known = {step: loss for step, loss in losses.items() if loss is not None}
        # Ties go to the later one.
        return min(known, key=lambda step: (known[step], -step), default=None)

    def restore(self, like: Any, *, step: int | None = None) -> Restored | None:
        """The latest intact checkpoint, or that of `step`; None without any.

        The primary process chooses the step, and all processes read it. Each damaged checkpoint
        that is skipped logs a warning and, unless read-only, is renamed to <step>.damaged, so that
        its step can be saved again.

        Args:
          like: a state of the expected structure and shapes.
          step: which one, by default the latest.

        Raises:
          UserError: no checkpoint of that step, a damaged one, none intact, or one of another
            structure.
        """
        found = None

        def choose() -> str:
            nonlocal found
            found = self._restore(like, step)
            return "" if found is None else str(found.step)

        chosen = processes.run_on_primary(choose)
        if chosen and found is None:
            self._manager.reload()  # the primary process may have renamed some
            found = self._restore(like, int(chosen))
        return found

    def _restore(self, like: Any, step: int | None) -> Restored | None:
        steps = self.steps()
        if not steps:
            return None
        if step is not None and step not in steps:
            raise UserError(
                f"there is no checkpoint of step {step} in {self._folder}: use one of {steps}"
            )
        damaged: dict[int, Damaged] = {}
        for candidate in reversed(steps) if step is None else [step]:
            try:
                found = self._read(candidate, like)
            except Damaged as error:
                damaged[candidate] = error
                continue
            for bad, why in damaged.items():
                _logger.warning(
                    "warning: checkpoint %d is damaged (%s): resuming from %d%s",
                    bad, why, candidate, self._set_aside(bad),
                )  # fmt: skip
            return found
        first, why = next(iter(damaged.items()))
        if step is None:
            raise UserError(
                f"none of the checkpoints {steps} in {self._folder} is intact (step {first}: "
                f"{why}): restore a copy of one, or use another --workdir"
            ) from why
        raise UserError(
            f"the checkpoint {self._folder / str(step)} is damaged ({why}): use 'latest', the "
            f"newest intact one, or another of {steps}"
        ) from why

    def _read(self, step: int, like: Any) -> Restored:
        """The content of one checkpoint, verified by its checksums.

        Raises:
          Damaged: a checksum differs, or it can't be read although its structure fits.
          UserError: it is of another structure.
        """
        folder = self._folder / str(step)
        stored = self._manifest(step)
        if stored is None:
            _logger.warning(
                "checkpoint %d has no checksums (written by an older version): not verified", step
            )
        elif other := checksums.difference(stored, like):
            raise _unlike(folder, other)
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            if stored is not None:
                raise Damaged(f"it can't be read: {_first_line(error)[:100]}") from error
            raise _unlike(folder, _first_line(error)) from error
        state = found["state"]
        for wanted, leaf in zip(jax.tree.leaves(like), jax.tree.leaves(state), strict=True):
            if wanted.shape != leaf.shape:
                raise UserError(
                    f"the checkpoint {folder} has an array of {leaf.shape} where this config has "
                    f"{wanted.shape}: use the config and data of that run, or another --workdir"
                )
        if stored is not None:
            checksums.verify(stored, state, found["data"])
        return Restored(step, state, found["data"])

    def _manifest(self, step: int) -> Manifest | None:
        """The verified manifest of a checkpoint; None in those of older versions."""
        folder = self._folder / str(step)
        if not (folder / CHECKSUMS).is_dir():
            with contextlib.suppress(OSError):
                # orbax's list of the items that were written.
                if CHECKSUMS.encode() in (folder / "_CHECKPOINT_METADATA").read_bytes():
                    raise Damaged("its checksums are missing")
            return None
        try:
            args = ocp.args.Composite(checksums=ocp.args.JsonRestore())
            stored = self._manager.restore(step, args=args)[CHECKSUMS]
        except Exception as error:
            raise Damaged(f"its checksums can't be read: {_first_line(error)}") from error
        return checksums.check(stored)

    def _read_loss(self, step: int) -> float | None:
        try:
            stored = self._manifest(step)
            if stored is None:  # an older version: orbax stored the loss
                path = self._folder / str(step) / "metrics" / "metrics"
                stored = json.loads(path.read_text())
            return float(stored["loss"])
        except (Damaged, OSError, ValueError, TypeError, KeyError):
            return None

    def _set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint, to be inspected by hand; returns a note for the warning."""
        if self._read_only:
            return ""
        place = self._folder / f"{step}.damaged"
        with _as_user_error(f"can't rename the damaged {self._folder / str(step)}"):
            shutil.rmtree(place, ignore_errors=True)
            (self._folder / str(step)).rename(place)
            self._manager.reload()
            self._losses.pop(step, None)
        return f"; it is kept as {place}"

    def close(self) -> None:
        """Waits for the last save and stops orbax's threads.

        Raises:
          UserError: the last save failed.
        """
        self._join()
        with _as_user_error(f"can't write a checkpoint to {self._folder}"):
            self._manager.close()
        self.wait()


def _by_itself() -> Any:
    """Options without barriers among processes: only the primary one writes to the folder."""
    if not processes.is_multiprocess():
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )


def _unlike(folder: Path, why: str) -> UserError:
    return UserError(
        f"the checkpoint {folder} can't be read for this config ({why}): use the config and data "
        "of that run, remove that folder to resume from the previous one, or use another --workdir"
    )


class _LastAndBest:
    """Preservation policy for orbax: the last checkpoints, the best by `best_step`, and others.

    Losses are not stored by orbax, which opens no checkpoint at all if one of them can't be read.
    """

    def __init__(self, best_step: Callable[[], int | None], keep_every: int) -> None:
        self._best_step, self._keep_every = best_step, keep_every

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best, last = self._best_step(), len(checkpoints) - KEEP_LAST
        every = self._keep_every
        return [
            i >= last or info.step == best or bool(every and info.step % every == 0)
            for i, info in enumerate(checkpoints)
        ]


def _reason(error: BaseException) -> str:
    """The system error in a tensorstore message, or the message's first line."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in str(error):
            return os.strerror(number)
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def _as_user_error(what: str) -> Any:
    """Turns disk errors (full, read-only, missing) into a one-line UserError.

    tensorstore raises them as ValueError or as its own types, so all exceptions are caught.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{what}: {_reason(error)}; earlier checkpoints are intact: "
            "free space or use another --workdir, and run the same command again"
        ) from error
