"""What a run tells while it goes: metrics.jsonl, TensorBoard events, a progress bar."""

import functools
import json
import sys
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from diffjax.files import atomic_write


class MetricsLog:
    """Rows of metrics.jsonl, and the same numbers as TensorBoard events.

    A run that goes on from step k first drops the rows after k, which belong to steps that will be
    taken again.
    """

    def __init__(self, workdir: Path, *, start: int) -> None:
        self.path = workdir / "metrics.jsonl"
        kept = [row for row in read_rows(self.path) if row["step"] <= start]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        atomic_write(self.path, lambda file: file.write(text.encode()))
        self._file = self.path.open("a")
        self._folder, self._start = workdir / "tensorboard", start

    @functools.cached_property
    def _events(self) -> Any:
        # Not before there is something to write: tensorboardX imports torch where there is one,
        # which takes seconds in which a first step can be computed.
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=self._start + 1 if self._start else None)

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row with a "step"; every other number becomes a TensorBoard scalar."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, row["step"])

    def image(self, name: str, picture: Any, *, step: int) -> None:
        """A uint8 (H, W, C) picture as a TensorBoard image."""
        self._events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        if "_events" in vars(self):
            self._events.close()


class NoLog:
    """The log of a process that keeps none, since the run's first one does."""

    def write(self, row: dict[str, Any]) -> None:
        """Leaves it."""

    def image(self, name: str, picture: Any, *, step: int) -> None:
        """Leaves it."""

    def close(self) -> None:
        """There is nothing to close."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics.jsonl; a last line that was cut off is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


class Progress:
    """A bar on a terminal, plain lines elsewhere: loss, images a second, time left."""

    def __init__(
        self, *, start: int, total: int, batch_size: int, out: TextIO | None = None
    ) -> None:
        self._out = sys.stderr if out is None else out
        self._start, self._total, self._batch_size = start, total, batch_size
        self._bar = (
            tqdm(total=total, initial=start, file=self._out, unit="step", dynamic_ncols=True)
            if self._out.isatty()
            else None
        )

    def update(self, step: int, *, loss: float, images_per_second: float) -> None:
        """Says where the run is."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {images_per_second:.0f} images/s")
            self._bar.update(step - self._bar.n)
            return
        if step == self._start + 1:  # most of it is compiling, which tells nothing of what is left
            seconds = self._batch_size / images_per_second
            self.say(f"step {step}/{self._total}  loss {loss:.4f}  after {seconds:.1f} s")
            return
        left = (self._total - step) * self._batch_size / images_per_second
        self.say(
            f"step {step}/{self._total}  loss {loss:.4f}  {images_per_second:.0f} images/s  "
            f"{clock(left)} left"
        )

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._out)
        else:
            print(text, file=self._out, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss under an hour.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
