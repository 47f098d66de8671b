"""Prefetching batches to the devices."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from diffjax.data.batches import BatchIterator


class Prefetcher:
    """Reads a batch iterator in a thread and puts each batch on the devices.

    `state` is the iterator's position after the last batch returned, not after those prefetched: a
    run restored from it continues with the next batch.
    """

    def __init__(
        self, batches: BatchIterator, put: Callable[[dict[str, Any]], Any], *, depth: int = 2
    ) -> None:
        self.state = batches.get_state()
        self._queue: queue.Queue[tuple[Any, Any, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._fill, args=(batches, put), name="prefetch", daemon=True
        )
        self._thread.start()

    def _fill(self, batches: BatchIterator, put: Callable[[dict[str, Any]], Any]) -> None:
        error: BaseException | None = None
        while not self._stop.is_set() and error is None:
            item: tuple[Any, Any, BaseException | None]
            try:
                batch = put(next(batches))
                item = (batch, batches.get_state(), None)
            except BaseException as caught:  # raised in the consumer
                error = caught
                item = (None, None, caught)
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch, state, error = self._queue.get()
        if error is not None:
            raise error
        self.state = state
        return batch

    def close(self) -> None:
        """Stops the thread; prefetched batches are dropped."""
        self._stop.set()
        self._thread.join(timeout=5)
