"""Resource use of a run: time per step, waits for data, compilations, memory, open files."""

import collections
import contextlib
import functools
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Steps in flight. The host runs that far ahead and then waits for the oldest, so that completion
# times are known and the device is never idle.
IN_FLIGHT = 2
# Steps after the first that --profile skips, and the number that it then traces.
PROFILE_AFTER, PROFILED = 5, 5


class StepTimer:
    """Measures step times; `row` summarises those since the last row."""

    def __init__(self) -> None:
        self._under_way: collections.deque[Any] = collections.deque()
        self._done: float | None = None
        self._steps: list[float] = []
        self._waits: list[float] = []
        _compilations()  # counts from here on

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the time to get a batch."""
        began = time.monotonic()
        yield
        self._waits.append(time.monotonic() - began)

    def step(self, metrics: Any) -> None:
        """Call after dispatching a step; `metrics` are arrays that it returns."""
        self._under_way.append(metrics)
        if len(self._under_way) > IN_FLIGHT:
            self._take()

    def resume(self) -> None:
        """Restarts timing after work other than steps, which is not counted."""
        self._under_way.clear()
        self._done = None

    def row(self) -> dict[str, float]:
        """Values for a row of metrics.jsonl; waits for the steps in flight.

        step_ms_p50, step_ms_p95: from one step's end to the next's; only with at least two steps.
        data_wait_ms: mean time that a step waited for its batch.
        compilations: programs compiled or read from the cache since training started.
        host_memory_mb: current resident size of the process; only with /proc, as on Linux.
        host_memory_anonymous_mb: the part of it that is not file-backed, and that a leak increases.
        host_memory_peak_mb: peak resident size.
        open_files: file descriptors of the process; only with /dev/fd, as on Linux and macOS.
        device_memory_mb: peak memory of the first device, if it reports it.
        """
        while self._under_way:
            self._take()
        found: dict[str, float] = {}
        if self._steps:
            p50, p95 = np.percentile(self._steps, [50, 95]) * 1e3
            found |= {"step_ms_p50": float(p50), "step_ms_p95": float(p95)}
        if self._waits:
            found["data_wait_ms"] = float(np.mean(self._waits)) * 1e3
        found["compilations"] = float(_compilations().count)
        found |= _host()
        used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if used is not None:
            found["device_memory_mb"] = used / 2**20
        self._steps, self._waits = [], []
        return found

    def _take(self) -> None:
        jax.block_until_ready(self._under_way.popleft())
        now = time.monotonic()
        if self._done is not None:
            self._steps.append(now - self._done)
        self._done = now


class TraceProfiler:
    """Writes a trace of a few steps, for TensorBoard's profiler or Perfetto.

    The first steps, which include compilation, are skipped.
    """

    def __init__(self, folder: Path, *, start: int, on: bool) -> None:
        self._folder, self._on = folder / "profile", on
        self._first = start + PROFILE_AFTER + 1
        self._tracing = False

    def before(self, step: int) -> None:
        """Call before dispatching a step."""
        if self._on and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, step: int, metrics: Any) -> Path | None:
        """Call after dispatching it; returns the folder once the trace is written, else None."""
        if not self._tracing or step < self._first + PROFILED - 1:
            return None
        jax.block_until_ready(metrics)
        self.close()
        return self._folder

    def close(self) -> None:
        """Stops a running trace."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


class _Compilations:
    count = 0

    def __call__(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1


@functools.cache
def _compilations() -> _Compilations:
    # JAX's listeners can't be unregistered: one per process.
    listener = _Compilations()
    jax.monitoring.register_event_duration_secs_listener(listener)
    return listener


def _host() -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"host_memory_peak_mb": peak / (2**20 if sys.platform == "darwin" else 2**10)}
    with contextlib.suppress(OSError):
        pages = Path("/proc/self/statm").read_text().split()
        resident, shared = (int(x) * resource.getpagesize() / 2**20 for x in pages[1:3])
        found |= {"host_memory_mb": resident, "host_memory_anonymous_mb": resident - shared}
    with contextlib.suppress(OSError):
        found["open_files"] = float(len(os.listdir("/dev/fd")) - 1)  # minus the listing's own
    return found
