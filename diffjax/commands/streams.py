"""Standard output and error that a command can always write to.

A run outlives its terminal: a stream that is closed, a pipe that nobody reads any longer, a
terminal that is gone, and an encoding without the letters of a file name do not end it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

from diffjax.errors import UserError

# Nobody reads the stream any longer: what is written to it is dropped.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET, errno.ESTALE)


class Tolerant(io.TextIOBase):
    """A text stream whose writes never raise.

    Attributes:
      failure: the error that text was lost by, such as a full disk; None if the reader has gone.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None
        self._gone = False

    def write(self, text: str) -> int:
        """Writes the text, unless the stream is gone."""
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, unless it is gone."""
        self._try(self.stream.flush)

    def _try(self, call: Any, *arguments: Any) -> None:
        if self._gone:
            return
        try:
            call(*arguments)
        except OSError as error:
            self._gone = error.errno in _GONE
            self.failure = None if self._gone else error
        except ValueError:  # it was closed
            self._gone = True

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return not self._gone and self.stream.isatty()

    def fileno(self) -> int:
        """The stream's file descriptor."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """True."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding."""
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """What the stream does with letters that its encoding lacks."""
        return self.stream.errors


def open_missing() -> None:
    """Opens the null device for standard descriptors that are closed.

    Otherwise the next file that is opened would be 2, and C libraries would write warnings to it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


@contextlib.contextmanager
def tolerant_streams() -> Any:
    """Within it sys.stdout and sys.stderr never raise.

    Letters that the encoding lacks are escaped, as in "w\\xf6rk". Streams that were replaced, as in
    a notebook, keep their own handling of encodings.
    """
    open_missing()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_tolerant(stream) for stream in before)
    try:
        yield sys.stdout
    finally:
        for stream, original in zip((sys.stdout, sys.stderr), before, strict=True):
            stream.flush()
            _drop_unread(original)
        sys.stdout, sys.stderr = before


def check_written() -> None:
    """Checks that no text was lost within `tolerant_streams`, but for a reader that has gone.

    Raises:
      UserError: some was, as on a full disk.
    """
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if failure is not None:
        raise UserError(
            f"the standard output can't be written: {failure.strerror}: what was printed is "
            "incomplete; free space or redirect it elsewhere, and run the same command again"
        )


def _tolerant(stream: Any) -> Any:
    if stream is None:  # closed when Python started
        return open(os.devnull, "w")
    with contextlib.suppress(AttributeError, ValueError, OSError):
        if stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    return Tolerant(stream)


def _drop_unread(stream: Any) -> None:
    """Sends what can't be flushed to the null device, so that Python does not fail at its exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
