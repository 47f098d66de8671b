"""The time that a computation takes without what JAX compiles in it."""

import threading
import time
from typing import Any

import jax

_compiling = threading.local()


# Tracing is left out: its events are nested, and would be counted twice.
EVENTS = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def _add(event: str, duration_secs: float, **_: Any) -> None:
    if event in EVENTS:
        _compiling.seconds = getattr(_compiling, "seconds", 0.0) + duration_secs


jax.monitoring.register_event_duration_secs_listener(_add)


class Clock:
    """Seconds since it was made, those of compilation on this thread apart."""

    def __init__(self) -> None:
        self._start, self._before = time.perf_counter(), getattr(_compiling, "seconds", 0.0)

    @property
    def compiling(self) -> float:
        """Seconds in which this thread compiled."""
        return getattr(_compiling, "seconds", 0.0) - self._before

    @property
    def seconds(self) -> float:
        """The others."""
        return max(0.0, time.perf_counter() - self._start - self.compiling)
