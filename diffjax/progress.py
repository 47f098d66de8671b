"""What is shown during a wait: a bar on a terminal, a line from time to time elsewhere.

    with Bar("fashion_mnist: encoding images", len(source)) as bar:
        for start in range(0, len(source), size):
            ...
            bar(start + size)

    with note_if_long("compiling the train step: this may take a minute"):
        step(state, batch)

Nothing is shown of what takes less than two seconds, nor where diffjax logs no lines: in all
processes but the primary one, and in programs that don't set the level of the logger "diffjax".
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from tqdm import tqdm

# Seconds of a wait without a word, and between two lines of a log.
QUIET_S = 2.0
LINE_EVERY_S = 30.0

_logger = logging.getLogger("diffjax")


def shown() -> bool:
    """Whether this process shows its progress."""
    return _logger.isEnabledFor(logging.INFO)


def on_terminal() -> bool:
    """Whether stderr is a terminal, where a bar can be drawn."""
    return sys.stderr is not None and sys.stderr.isatty()


class Bar:
    """The progress of a computation with a known number of parts; a context manager.

    On a terminal the bar appears after `QUIET_S` and goes at the end. Elsewhere a line with the
    number done is logged each `LINE_EVERY_S`.
    """

    def __init__(self, what: str, total: int, *, unit: str = "image") -> None:
        """Shows nothing yet.

        Args:
          what: what is computed, in front of the numbers.
          total: number of parts.
          unit: what a part is called.
        """
        self._what, self._total, self._unit = what, total, unit
        self._started = self._logged = time.monotonic()
        self._done = 0
        self._note = ""
        self._bar: Any = None
        if shown() and on_terminal():
            self._bar = tqdm(
                desc=what, total=total, unit=unit, leave=False, delay=QUIET_S,
                dynamic_ncols=True, file=sys.stderr,
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def __call__(self, done: int, note: str = "") -> None:
        """Shows that the first `done` parts are computed, with a note such as their mean."""
        done = min(done, self._total)
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._done)
        elif shown() and done < self._total and time.monotonic() - self._logged > LINE_EVERY_S:
            self._logged = time.monotonic()
            after = f", {note}" if note else ""
            _logger.info(
                "%s: %d of %d, %.0f s%s", self._what, done, self._total, self.seconds, after
            )
        self._done = done

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def note_if_long(text: str, *, log: Callable[[str], object] = _logger.info) -> Iterator[None]:
    """Logs a line if what is done within takes longer than `QUIET_S`.

    For a wait whose parts can't be counted, such as the compilation of a program.

    Args:
      text: what is waited for.
      log: called with the text, in another thread.
    """
    if not shown():
        yield
        return
    timer = threading.Timer(QUIET_S, log, [text])
    timer.daemon = True  # an exit does not wait for it
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
