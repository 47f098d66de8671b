"""Files to which whole records are appended, on a disk that may be full for a while."""

import collections
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from diffjax.files import sync

LIMIT = 2**24  # bytes of records buffered in memory; a row of metrics has about 500

_logger = logging.getLogger("diffjax")


def _open(path: Path) -> BinaryIO:
    return path.open("ab", buffering=0)


class AppendFile:
    """Appends records to a file; buffers them in memory, in order, while the disk is full.

    A partially written record is truncated, so the file holds whole records only. One message is
    logged when buffering begins, and one when all buffered records are written.
    """

    def __init__(
        self, path: Path, *, what: str, open_file: Callable[[Path], BinaryIO] = _open
    ) -> None:
        """The file is opened at the first record.

        Args:
          path: the file, whose last record is whole; it and its folder are created if missing.
          what: the records' name in warnings.
          open_file: opens it for appending, without a buffer.
        """
        self.path = path
        self.waiting: collections.deque[bytes] = collections.deque()
        self._what, self._open = what, open_file
        self._file: BinaryIO | None = None
        self._size = self._bytes = 0  # of the records in the file; of those buffered
        self._failure: OSError | None = None

    def append(self, record: bytes) -> None:
        """Writes a record after those buffered, or buffers it.

        Raises:
          OSError: the disk's error, if more than LIMIT bytes would be buffered; the record is
            dropped.
        """
        if self._bytes + len(record) > LIMIT and (failure := self._write()):
            raise failure
        self.waiting.append(record)
        self._bytes += len(record)
        self._write()

    def flush(self) -> OSError | None:
        """Writes and syncs all records; returns the error if that fails."""
        failure = self._write()
        if failure is None and self._file is not None:
            try:
                sync(self._file)  # network file systems may report errors only here
            except OSError as error:
                return error
        return failure

    def close(self) -> None:
        """Tries to write a last time; records still in `waiting` are lost."""
        self._write()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self) -> OSError | None:
        """Writes buffered records while there is space; returns the error if some are left."""
        try:
            while self.waiting:
                self._put(self.waiting[0])
                self._bytes -= len(self.waiting.popleft())
        except OSError as error:
            if self._failure is None:
                _logger.warning(
                    "warning: can't write %s to %s: %s; buffering them in memory",
                    self._what, self.path, reason(error),
                )  # fmt: skip
            self._failure = error
            return error
        if self._failure is not None:
            _logger.info("all buffered %s are written to %s", self._what, self.path)
            self._failure = None
        return None

    def _put(self, record: bytes) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open(self.path)
            self._size = os.fstat(self._file.fileno()).st_size
        elif self._failure is not None:
            self._file.truncate(self._size)  # truncation may have failed the last time
        left = memoryview(record)
        try:
            while left:  # a nearly full disk writes a part
                left = left[self._file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(record)


def reason(error: OSError) -> str:
    """The system's message for an error, without its number."""
    return error.strerror or str(error) or type(error).__name__
