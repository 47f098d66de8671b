"""A workdir's lock: one training run at a time."""

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from diffjax.errors import UserError

LOCK, OWNER = ".lock", ".lock.json"
# Errors of file systems without flock, such as Lustre, NFS without a lock daemon, some FUSE mounts.
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EPERM)

_logger = logging.getLogger("diffjax")


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Locks the workdir for one training run.

    By flock, which the system releases when the process ends, however it ends. On a file system
    without flock, by a file that names this host and process: it is removed at the end, and taken
    over from a process of this host that no longer exists.

    Raises:
      UserError: another run holds the lock, or the folder can't be created.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK).open("w")
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} can't be written to: {error.strerror}; choose another folder"
        ) from error
    with file:
        try:
            _flock(file.fileno())
        except BlockingIOError:
            raise UserError(
                f"--workdir={workdir} is in use by another training run: wait for it, or use "
                "another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            _logger.warning(
                "warning: the file system of %s has no flock (%s): it is locked by the file %s",
                workdir, error.strerror, OWNER,
            )  # fmt: skip
            with _owned(workdir):
                yield
            return
        yield


def _flock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # not on Unix
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _owned(workdir: Path) -> Iterator[None]:
    """Holds the file OWNER, which is created atomically."""
    path = workdir / OWNER
    mine = {"host": socket.gethostname(), "process": os.getpid()}
    for _ in range(2):
        try:
            with open(path, "x") as file:
                json.dump(mine, file)
            break
        except FileExistsError:
            _remove_if_stale(path, workdir, mine["host"])
    else:
        raise UserError(f"--workdir={workdir} is in use by another training run: wait for it")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _remove_if_stale(path: Path, workdir: Path, host: object) -> None:
    """Removes the file of a process of this host that has ended.

    Raises:
      UserError: the process may still run.
    """
    try:
        owner = json.loads(path.read_text())
        where, process = str(owner["host"]), int(owner["process"])
    except (OSError, ValueError, TypeError, KeyError):
        where, process = "unknown", 0
    if where == host and process and not _runs(process):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    raise UserError(
        f"--workdir={workdir} is in use by process {process} of host {where}: wait for it, or, if "
        f"that run is over, remove {path}"
    )


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
