"""A pause of Python's garbage collector."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def gc_disabled() -> Iterator[None]:
    """No search for reference cycles within the block, or the function that it decorates.

    Tracing and lowering a network makes millions of objects that stay, and looking through all of
    them again and again is a quarter of their time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
