"""Paths as users write them, the cache folder, and atomic file writes."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from diffjax.errors import UserError

_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")
# Errors of file systems that have no fsync, such as some FUSE and network mounts.
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)

_logger = logging.getLogger("diffjax")


@functools.cache
def _writable(*candidates: Path) -> Path:
    """The first folder that can be created and written to; the last one if none can."""
    for i, folder in enumerate(candidates):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            if i + 1 < len(candidates):
                _logger.info(
                    "%s: %s: files are cached in %s", folder, error.strerror, candidates[i + 1]
                )
            continue
        return folder
    return candidates[-1]


def cache_folder() -> Path:
    """The folder of cached files: $XDG_CACHE_HOME/diffjax, or ~/.cache/diffjax.

    Where that can't be written to, or where there is no home folder, a folder of the user's in the
    system's folder for temporary files.
    """
    temporary = Path(tempfile.gettempdir()) / f"diffjax-{_user()}"
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return _writable((Path(given) if given else Path.home() / ".cache") / "diffjax", temporary)
    except RuntimeError:  # neither HOME nor an entry in the password database
        return _writable(temporary)


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"


def expanded(path: str | os.PathLike[str], *, name: str = "the path") -> Path:
    """The path with a leading ~ or ~user and variables ($NAME, ${NAME}) expanded.

    An unknown user's ~ stays, and so does a name with a "$" that exists as it is.

    Raises:
      UserError: a variable that is not set, or what is no path; `name` says of which argument.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{name} is {path!r}: expected a string or a pathlib.Path")
    text = os.fspath(path)
    if "$" not in text or os.path.lexists(text):
        return Path(os.path.expanduser(text))
    if unset := [name for name in _VARIABLE.findall(text) if name.strip("{}") not in os.environ]:
        raise UserError(
            f"{text}: the environment variable {unset[0].strip('{}')} is not set: set it, or write "
            "the path in full"
        )
    return Path(os.path.expanduser(os.path.expandvars(text)))


def is_utf8(path: Path) -> bool:
    """Whether a path's bytes are UTF-8 as Python has decoded them."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def sync(file: BinaryIO) -> None:
    """Flushes a file to disk, as far as its file system can."""
    file.flush()
    sync_descriptor(file.fileno())


def sync_descriptor(descriptor: int) -> None:
    """Calls fsync, where the file system has it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically: `path` has either its old content or all of the new.

    The bytes go to a hidden file in the same folder, which is flushed to disk and then renamed to
    `path`. If `write` raises, `path` is unchanged and the hidden file is removed. Missing parent
    folders are created.

    Args:
      path: the file to create or replace.
      write: called once with a seekable binary file open for writing.

    Raises:
      UserError: the folder cannot be created or written to, or `path` is a folder.
      Exception: any exception of `write`, unchanged.
    """
    path = Path(path)
    # O_EXCL with the process's umask: tempfile would make the file readable by its owner only.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        file = open(aside, "xb")  # noqa: SIM115  closed below, before the rename
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; expected a file name in a writable folder; "
            "choose another path"
        ) from error
    try:
        with file:
            write(file)
            sync(file)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder next to `out`, which is renamed to it at the end, and removed by an error.

    Args:
      out: a path with nothing there, or an empty folder.

    Raises:
      UserError: there is something, or the folder can't be written to.
    """
    out = out.resolve()
    aside = out.with_name(f".{out.name}.{secrets.token_hex(6)}.tmp")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is not empty: give a new folder")
        aside.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield aside
        try:
            if out.exists():
                out.rmdir()
            os.replace(aside, out)
        except OSError as error:
            raise _unwritable(out, error) from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _sync_folder(out.parent)


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write {out}: {error.strerror}; expected a new folder in a writable one; choose "
        "another path"
    )


def _sync_folder(folder: Path) -> None:
    """Makes the rename durable against power loss, where the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def touch(folder: Path) -> None:
    """Marks a cache folder as used; errors are ignored, as another user's folder is read-only."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def drop_unused(cache: Path, limit: int) -> None:
    """Removes the least recently used folders of a cache until it fits a size.

    Args:
      cache: a folder of folders of files; `touch` marks one as used.
      limit: the size in bytes.
    """
    room = limit
    for folder in sorted(cache.iterdir(), key=lambda f: f.stat().st_mtime_ns, reverse=True):
        room -= sum(file.stat().st_size for file in folder.iterdir())
        if room < 0:
            # A process that has mapped its files keeps them until it exits.
            shutil.rmtree(folder, ignore_errors=True)
