"""Where diffjax keeps what it can make again, and how it writes a file whole or not at all."""

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
    """The path with a leading ~ or ~user replaced; an unknown user's is left, to be not found."""
    return Path(os.path.expanduser(path))


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Gives `path` the bytes that `write` puts into the open file it is handed.

    The bytes go to a hidden file in the same folder, are flushed to the disk, and only then
    take the name `path` in one rename. When `write` raises, `path` is as it was before and
    the hidden file is gone. Missing parent folders are made.

    Args:
      path: the file to create or replace.
      write: called once with a seekable binary file open for writing.

    Raises:
      UserError: the folder cannot be made or written to, or `path` is a folder.
      Exception: whatever `write` raises, unchanged.
    """
    path = Path(path)
    # O_EXCL with the process's umask: tempfile would leave the result readable by its owner only.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        file = open(aside, "xb")  # noqa: SIM115  closed below, before the rename
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; expected a file name in a folder that "
            "can be written to; choose another path"
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
    """Makes the rename itself survive a power cut, where the system allows it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def touch(folder: Path) -> None:
    """Marks a folder of a cache as used; another user's may be read, though not touched."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def drop_unused(cache: Path, limit: int) -> None:
    """Removes the folders of a cache that were used longest ago, down to a size.

    Args:
      cache: a folder of folders of files; `touch` marks one as used.
      limit: bytes that may stay.
    """
    room = limit
    for folder in sorted(cache.iterdir(), key=lambda f: f.stat().st_mtime_ns, reverse=True):
        room -= sum(file.stat().st_size for file in folder.iterdir())
        if room < 0:
            # Whoever has mapped its files keeps them until it ends.
            shutil.rmtree(folder, ignore_errors=True)
