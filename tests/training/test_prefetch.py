"""Prefetching changes when batches are drawn, not which ones, nor what is saved."""

import threading

import numpy as np
import pytest

from diffjax import data
from diffjax.training.prefetch import Prefetcher


@pytest.fixture
def source():
    return data.ArraySource(np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1), name="twenty")


def draw(source, count, state=None):
    batches = data.batches(source, batch_size=3, seed=0)
    if state:
        batches.set_state(state)
    prefetcher = Prefetcher(batches, lambda batch: batch["image"].ravel().tolist())
    found = [next(prefetcher) for _ in range(count)]
    state = prefetcher.state
    prefetcher.close()
    return found, state


def test_the_position_is_that_of_the_batches_handed_out(source):
    whole, _ = draw(source, 9)
    first, state = draw(source, 4)
    rest, _ = draw(source, 5, state)
    assert first + rest == whole


def test_an_error_in_the_thread_reaches_the_caller(source):
    def broken(batch):
        raise RuntimeError("no such device")

    prefetcher = Prefetcher(data.batches(source, batch_size=3, seed=0), broken)
    with pytest.raises(RuntimeError, match="no such device"):
        next(prefetcher)
    prefetcher.close()


def test_close_ends_the_thread(source):
    prefetcher = Prefetcher(data.batches(source, batch_size=3, seed=0), lambda batch: batch)
    next(prefetcher)
    prefetcher.close()
    # By name: threads of other tests may end at any time.
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
