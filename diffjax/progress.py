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
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

# Seconds of a wait without a word, between two drawings of a bar, and between lines of a log.
QUIET_S = 2.0
TICK_S = 0.5
LINE_EVERY_S = 30.0

_logger = logging.getLogger("diffjax")


def shown() -> bool:
    """Whether this process shows its progress."""
    return _logger.isEnabledFor(logging.INFO)


def on_terminal() -> bool:
    """Whether stderr is a terminal, where a bar can be drawn."""
    return sys.stderr is not None and sys.stderr.isatty()


def terminal_bar(*, file: TextIO, **how: Any) -> Any:
    """A tqdm bar as wide as the terminal; of 80 columns on one that does not say its size.

    In a container and over some connections a terminal has 0 columns, where tqdm shows nothing.
    """
    try:
        sized = os.get_terminal_size(file.fileno()).columns > 0
    except (OSError, ValueError):
        sized = False
    width: dict[str, Any] = {"dynamic_ncols": True} if sized else {"ncols": 80}
    return tqdm(file=file, **width, **how)


class Bar:
    """The progress of a computation with a known number of parts; a context manager.

    On a terminal a bar appears after `QUIET_S`, whose clock runs, and goes at the end. Elsewhere a
    line with the number done is logged each `LINE_EVERY_S`.

    Attributes:
      done: parts that are computed.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        unit: str = "image",
        at_once: int = 0,
        log: Callable[[str], object] | None = None,
    ) -> None:
        """Shows nothing yet.

        Args:
          what: what is computed, in front of the numbers.
          total: number of parts.
          unit: what a part is called.
          at_once: parts that are done together; where that is all, nothing is shown.
          log: called with the lines; None for those of the logger "diffjax".
        """
        self._what, self._total, self._unit = what, total, unit
        self._log = log or (_logger.info if shown() else None)
        self._started = self._logged = time.monotonic()
        self.done = 0
        self._note = ""
        self._closed = threading.Event()
        self._drawing: threading.Thread | None = None
        if at_once >= total:
            self._log = None
        elif shown() and on_terminal():
            self._log = None
            self._drawing = threading.Thread(target=self._draw, daemon=True)
            self._drawing.start()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def __call__(self, done: int, note: str = "") -> None:
        """Shows that the first `done` parts are computed, with a note such as their mean."""
        self.done, self._note = min(done, self._total), note
        if self._log is None or self.done == self._total:
            return
        if time.monotonic() - self._logged > LINE_EVERY_S:
            self._logged = time.monotonic()
            after = f", {note}" if note else ""
            self._log(f"{self._what}: {self.done} of {self._total}, {self.seconds:.0f} s{after}")

    def _draw(self) -> None:
        """Draws the bar until it is closed, in a thread of its own."""
        if self._closed.wait(QUIET_S):
            return
        bar = terminal_bar(
            file=sys.stderr, desc=self._what, total=self._total, unit=self._unit,
            leave=False, initial=self.done, smoothing=0,
        )  # fmt: skip
        bar.initial, bar.start_t = 0, bar.start_t - self.seconds  # the rate since the start
        while not self._closed.wait(TICK_S):
            bar.n = self.done
            bar.set_postfix_str(self._note, refresh=False)
            bar.refresh()
        bar.close()

    def close(self) -> None:
        """Removes the bar."""
        self._closed.set()
        if self._drawing is not None:
            self._drawing.join()

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
def note_if_long(text: str, *, log: Callable[[str], object] | None = None) -> Iterator[None]:
    """Logs a line if what is done within takes longer than `QUIET_S`.

    For a wait whose parts can't be counted, such as the compilation of a program.

    Args:
      text: what is waited for.
      log: called with the text, in another thread; None for the logger "diffjax".
    """
    if not shown():
        yield
        return
    timer = threading.Timer(QUIET_S, log or _above_bars, [text])
    timer.daemon = True  # an exit does not wait for it
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _above_bars(text: str) -> None:
    """Logs a line; a bar on the terminal is drawn again below it."""
    with tqdm.external_write_mode(file=sys.stderr):
        _logger.info(text)
