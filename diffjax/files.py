"""The cache folder, and atomic file writes."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from diffjax.errors import UserError


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/diffjax, or ~/.cache/diffjax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffjax"


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ~ or ~user expanded; unchanged for an unknown user."""
    return Path(os.path.expanduser(path))


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
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        raise
    _sync_folder(path.parent)


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
