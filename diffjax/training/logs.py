"""Logs of a run: metrics.jsonl, TensorBoard events, a progress bar."""

import contextlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from diffjax.errors import UserError
from diffjax.files import atomic_write
from diffjax.progress import terminal_bar
from diffjax.training.append_file import AppendFile, reason
from diffjax.training.tensorboard import EventWriter

_logger = logging.getLogger("diffjax")


class MetricsLog:
    """Rows of metrics.jsonl, and the same numbers as TensorBoard events.

    A run resumed from step k first drops the rows after k, whose steps are taken again. While the
    disk is full, rows are buffered in memory and training continues.
    """

    def __init__(self, workdir: Path, *, start: int) -> None:
        self.path = workdir / "metrics.jsonl"
        kept = [row for row in read_rows(self.path) if row["step"] <= start]
        text = "".join(json.dumps(row) + "\n" for row in kept).encode()
        if self.path.exists() and self.path.read_bytes() != text:
            atomic_write(self.path, lambda file: file.write(text))
        self._rows = AppendFile(self.path, what="rows of metrics")
        self._events = EventWriter(workdir / "tensorboard", start=start)
        self._reported = False  # whether lost rows have been reported

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row with a "step"; every other number becomes a TensorBoard scalar.

        Raises:
          UserError: the disk is full, and so is the buffer.
        """
        try:
            self._rows.append((json.dumps(row) + "\n").encode())
        except OSError as error:
            raise UserError(self._lost(error)) from error
        values = {name: value for name, value in row.items() if name != "step"}
        self._events.scalars(values, step=row["step"])

    def image(self, name: str, picture: Any, *, step: int) -> None:
        """A uint8 (H, W, C) picture as a TensorBoard image."""
        self._events.image(name, picture, step=step)

    def finish(self) -> None:
        """Writes and syncs all rows, at the end of a run.

        Raises:
          UserError: some can't be written.
        """
        if failure := self._rows.flush():
            raise UserError(self._lost(failure))

    def close(self) -> None:
        """Tries to write a last time, and logs lost rows unless `finish` did; raises nothing."""
        self._rows.close()
        if self._rows.waiting and not self._reported:
            _logger.warning("warning: %s", self._lost(None))
        self._events.close()
        if lost := self._events.lost:
            _logger.warning("warning: %d TensorBoard events are lost: the disk was full", lost)

    def _lost(self, failure: OSError | None) -> str:
        self._reported = True
        waiting, of, why = self._rows.waiting, "", ""
        if waiting:
            first, last = (json.loads(row)["step"] for row in (waiting[0], waiting[-1]))
            of = f" of steps {first} to {last}"
        if failure:
            why = f": {reason(failure)}"
        return (
            f"can't write the metrics{of} to {self.path}{why}; earlier rows and checkpoints are "
            "intact: free space or use another --workdir, and run the same command again"
        )


class NoLog:
    """The log of all processes but the primary one; does nothing."""

    def write(self, row: dict[str, Any]) -> None:
        """Does nothing."""

    def image(self, name: str, picture: Any, *, step: int) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a truncated last line is dropped."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def first_step_seconds(rows: Sequence[Mapping[str, Any]], *, batch_size: int) -> float | None:
    """Seconds of the first step of the last start, which were mostly spent on compiling.

    Args:
      rows: of a metrics.jsonl; the first row of a start has a rate, and no times of steps yet.
      batch_size: of a step.
    """
    rates = [
        row["images_per_second"]
        for row in rows
        if row.get("images_per_second") and "step_ms_p50" not in row
    ]
    return batch_size / rates[-1] if rates else None


class Progress:
    """A bar on a terminal, plain lines elsewhere: loss, images per second, time left."""

    def __init__(
        self, *, start: int, total: int, batch_size: int, out: TextIO | None = None
    ) -> None:
        self._out = sys.stderr if out is None else out
        self._start, self._total, self._batch_size = start, total, batch_size
        self._bar = (
            terminal_bar(total=total, initial=start, file=self._out, unit="step")
            if self._out.isatty()
            else None
        )

    def update(self, step: int, *, loss: float, images_per_second: float) -> None:
        """Shows the step, the loss and the speed."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {images_per_second:.0f} images/s")
            self._bar.update(step - self._bar.n)
            return
        if step == self._start + 1:  # mostly compile time, so no estimate of the time left
            seconds = self._batch_size / images_per_second
            self.log(f"step {step}/{self._total}  loss {loss:.4f}  after {seconds:.1f} s")
            return
        left = (self._total - step) * self._batch_size / images_per_second
        self.log(
            f"step {step}/{self._total}  loss {loss:.4f}  {images_per_second:.0f} images/s  "
            f"{clock(left)} left"
        )

    def log(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        # Output may go to a file on a full disk, which must not end the run.
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.write(text, file=self._out)
            else:
                print(text, file=self._out, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class NoProgress:
    """The bar of all processes but the primary one; does nothing."""

    def update(self, step: int, *, loss: float, images_per_second: float) -> None:
        """Does nothing."""

    def log(self, text: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss under an hour.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
