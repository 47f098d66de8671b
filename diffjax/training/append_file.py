"""Files that grow by whole records, on a disk that may be full for a while."""

import collections
import contextlib
import logging
import os
from pathlib import Path
from typing import BinaryIO

LIMIT = 2**24  # bytes of records that wait in memory for room; a row of metrics has some 500

_logger = logging.getLogger("diffjax")


class AppendFile:
    """Appends records to a file; what the disk does not take waits in memory, in its order.

    In the file a record is whole or not at all: what a full disk left of one is cut off again, so
    that a reader, and the next record, find its end. That records wait is told once, and once more
    when all are written.
    """

    def __init__(self, path: Path, *, what: str) -> None:
        """Opens nothing yet: a disk may be too full for an empty file.

        Args:
          path: the file, whose last record is whole; it and its folder are made where missing.
          what: what the records are, in a warning.
        """
        self.path = path
        self.waiting: collections.deque[bytes] = collections.deque()
        self._what = what
        self._file: BinaryIO | None = None
        self._size = self._bytes = 0  # of the whole records in the file; of those that wait
        self._failure: OSError | None = None

    def append(self, record: bytes) -> None:
        """Writes a record after those that wait, or lets it wait, too.

        Raises:
          OSError: why there is no room for it; with it more than LIMIT bytes would wait, and it is
            dropped.
        """
        if self._bytes + len(record) > LIMIT and (failure := self._write()):
            raise failure
        self.waiting.append(record)
        self._bytes += len(record)
        self._write()

    def flush(self) -> OSError | None:
        """Has the system bring all records to the disk; else says why it could not."""
        failure = self._write()
        if failure is None and self._file is not None:
            try:
                os.fsync(self._file.fileno())  # a disk behind a network may tell only now
            except OSError as error:
                return error
        return failure

    def close(self) -> None:
        """Tries a last time; what still waits is lost, `waiting` has it."""
        self._write()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self) -> OSError | None:
        """Writes what waits, or as much as there is room for, and then says why no more."""
        try:
            while self.waiting:
                self._put(self.waiting[0])
                self._bytes -= len(self.waiting.popleft())
        except OSError as error:
            if self._failure is None:
                _logger.warning(
                    "warning: can't write %s to %s: %s; they wait in memory for room",
                    self._what, self.path, reason(error),
                )  # fmt: skip
            self._failure = error
            return error
        if self._failure is not None:
            _logger.info("%s that waited are in %s now", self._what, self.path)
            self._failure = None
        return None

    def _put(self, record: bytes) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self._size = os.fstat(self._file.fileno()).st_size
        elif self._failure is not None:
            self._file.truncate(self._size)  # where it failed the last time, too
        left = memoryview(record)
        try:
            while left:  # a disk that is nearly full takes a part, and refuses the next
                left = left[self._file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(record)


def reason(error: OSError) -> str:
    """What the system says of an error, without its number."""
    return error.strerror or str(error) or type(error).__name__
