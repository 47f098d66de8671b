"""Damaged copies of a file: the same ones in every run, as many as are asked for."""

import contextlib
import os
import resource
import signal
import struct

import numpy as np

# A few hundred in the suite; DIFFJAX_FUZZ=100000 goes on for longer.
COUNT = int(os.environ.get("DIFFJAX_FUZZ", "200"))
EXTREMES = [struct.pack(f"{order}{kind}", value) for order in "<>" for kind, value in (
    ("I", 2**32 - 1), ("I", 2**31 - 1), ("i", -1), ("I", 0), ("Q", 2**64 - 1), ("Q", 2**40),
    ("H", 2**16 - 1),
)]  # fmt: skip
MOST_SECONDS = 60  # a hang, not a slow machine
MOST_MEMORY = 2**30


def damaged(whole, *, seed, count=COUNT):
    """Yields `count` damaged copies of the bytes `whole`."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(data) + 1))
            match rng.integers(6):
                case 0 | 1:
                    data[place : place + 1] = bytes([rng.integers(256)])
                case 2:
                    extreme = EXTREMES[rng.integers(len(EXTREMES))]
                    data[place : place + len(extreme)] = extreme
                case 3:
                    del data[place : place + int(rng.integers(1, 9))]
                case 4:
                    data[place:place] = data[place : place + int(rng.integers(1, 33))]
                case 5:
                    del data[max(1, place) :]
        yield bytes(data)


@contextlib.contextmanager
def bounded():
    """Fails where what is inside hangs, or takes a GiB more than was taken before."""

    def stop(*_):
        raise TimeoutError(f"more than {MOST_SECONDS} s for one damaged file")

    before = signal.signal(signal.SIGALRM, stop)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) * 1024
    assert grown < MOST_MEMORY, f"{grown} bytes for one damaged file"


def refusals(read, files, error):
    """Reads every file; `error` alone may come out, with one line. Returns how many were refused.

    Args:
      read: bytes -> anything.
      files: the damaged files' bytes.
      error: the documented exception.
    """
    refused = 0
    for data in files:
        with bounded():
            try:
                read(data)
            except error as caught:
                refused += 1
                assert str(caught) and "\n" not in str(caught)
    return refused
