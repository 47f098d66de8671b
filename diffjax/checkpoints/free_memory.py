"""Returns free heap memory to the system."""

import contextlib
import ctypes


def malloc_trim() -> None:
    """Calls glibc's malloc_trim; does nothing with other C libraries.

    glibc keeps an arena for each of many threads, and the threads that write a checkpoint grow
    different ones each time, by a hundred megabytes and more over a run. A call takes about ten
    milliseconds.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
