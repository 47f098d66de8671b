"""What the C library's malloc does with freed memory; nothing changes with others than glibc."""

import contextlib
import ctypes

# malloc.h: mallopt's parameters.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Has freed memory stay with the process, in one heap; for before its threads are started.

    XLA on a CPU allocates the temporary arrays of a program, up to gigabytes, in each execution. By
    default, glibc maps them again every time, and the kernel fills them with zeros page by page:
    a fifth of a train step.
    """
    _call("mallopt", M_MMAP_MAX, 0)
    _call("mallopt", M_TRIM_THRESHOLD, -1)
    _call("mallopt", M_ARENA_MAX, 1)


def free_unused_memory() -> None:
    """Returns freed memory to the system; in about ten milliseconds.

    The threads that write a checkpoint grow the heap each time in other places, by a hundred
    megabytes and more over a run.
    """
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), name)(*arguments)
