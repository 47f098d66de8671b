"""Signals as requests to stop after the current step."""

import signal
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C; a scheduler's and a service's end; a terminal or an ssh connection that is gone; SLURM's
# --signal=USR1@60 (or USR2) before a job's end.
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class StopRequest:
    """Within `with`, the first of the signals STOPPING sets `signal`.

    A second one of the same kind has its usual effect: it ends the process. A signal that the
    process ignores, as SIGHUP under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in STOPPING:
            try:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not in the main thread, as in some notebooks
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
