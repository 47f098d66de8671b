"""Endless batches whose content is a function of (seed, step) alone.

The examples are taken from the endless concatenation of epochs,

    order(p) = perm_e[p mod N],   e = p div N,                                      (1)

where N is the size of the set and perm_e, a permutation of 0..N-1, depends on (seed, e) only.
Batch k holds the examples at positions k B .. (k + 1) B - 1, so it may straddle two epochs and
may be larger than the set. The only state is the number of examples taken, so a run resumed at
step k sees the same batches as an uninterrupted one.

In-memory and streamed sets share (1): memory limits change how images are read but not which
ones, and a state saved under either can be restored under the other. For streamed sets Grain
reads ahead in threads.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from diffjax import arguments
from diffjax.data.sources import ArraySource, ImageSource, check_source
from diffjax.errors import UserError

_CAPTIONS_KEY = "captions_crc32"
_INDEX_KEY = "index_crc32"
_SIDES = tuple(f"side_{axis}" for axis in range(8))  # for data other than images


# What to do where a run can't go on with something else.
INIT_FROM = (
    "start a new run from the weights of this one: a new --workdir with "
    "--config.train.init_from=<this workdir>"
)


def _crc32(text: str) -> int:
    return zlib.crc32(text.encode(errors="surrogateescape"))


class BatchIterator(Protocol):
    """Endless batches of one source, with a state that fits in a JSON file."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Returns itself."""
        ...

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns {"image": uint8 (B, H, W, C), "label": int32 (B,)}; never ends.

        If the source has captions, also "caption": int32 (B,), indices into its `captions`.
        """
        ...

    def get_state(self) -> dict[str, int]:
        """Returns the iterator's position; serialisable as JSON, a few bytes."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the position that `get_state` returned, on this set or an equal one.

        Raises:
          UserError: the state belongs to another set, seed or batch size.
        """
        ...


def epoch_permutation(size: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of the examples in one epoch: int64 (size,), a permutation of 0..size-1.

    It is the argsort of Philox's raw bits rather than `Generator.permutation`: NumPy guarantees
    that the bits are the same in all versions, which it does not for permutations, so a run can
    be resumed under a newer NumPy.

    >>> sorted(epoch_permutation(4, seed=0, epoch=7).tolist())
    [0, 1, 2, 3]
    """
    size = arguments.whole("size", size)
    seed, epoch = arguments.whole("seed", seed), arguments.whole("epoch", epoch)
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    return np.argsort(bits.random_raw(size), kind="stable")


class EpochOrder:
    """The endless order of equation (1); thread-safe."""

    def __init__(self, size: int, *, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._permutations: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def _permutation(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._permutations:
                # Concurrent readers are at most two epochs apart unless the batch is larger
                # than the set; then an epoch is short and cheap to compute again.
                while len(self._permutations) >= 3:
                    del self._permutations[next(iter(self._permutations))]
                self._permutations[epoch] = epoch_permutation(
                    self.size, seed=self.seed, epoch=epoch
                )
            return self._permutations[epoch]

    def __getitem__(self, position: int) -> int:
        """Returns the example at one position of the endless order."""
        epoch, offset = divmod(position, self.size)
        return int(self._permutation(epoch)[offset])

    def span(self, start: int, stop: int) -> np.ndarray:
        """Returns the examples at positions start..stop-1: int64 (stop - start,)."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.size)
            part = self._permutation(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)


class _Positioned:
    """The state shared by both iterators."""

    def __init__(self, source: ImageSource, *, batch_size: int, seed: int) -> None:
        self._position = 0
        self._name = source.name
        # A set is known by its content, such as class names and the names and sizes of its files;
        # the path is left out, so that training can resume after a set was moved.
        classes = _crc32("\n".join(source.class_names))
        shape = source.image_shape
        named = ("height", "width", "channels") if len(shape) == 3 else _SIDES[: len(shape)]
        self._identity = {
            "source_size": len(source),
            **dict(zip(named, shape, strict=True)),
            "classes_crc32": classes,
            "seed": seed,
            "batch_size": batch_size,
        }
        if source.captions:
            self._identity[_CAPTIONS_KEY] = _crc32("\0".join(source.captions))
        if (index := getattr(source, "index_crc32", None)) is not None:
            self._identity[_INDEX_KEY] = index

    def get_state(self) -> dict[str, int]:
        """Returns {"position": examples taken} and the fields that identify this iterator."""
        return {"position": self._position, **self._identity}

    def _check_state(self, state: dict[str, Any]) -> int:
        """Returns the state's position, or raises UserError if it is another iterator's."""
        # Sets without captions lack this key; it must be absent from their state, too.
        for key in (*self._identity, _CAPTIONS_KEY):
            expected = self._identity.get(key, "missing")
            found = state.get(key, "missing")
            if key == _INDEX_KEY and found == "missing":  # a state of an older version
                continue
            if key == _INDEX_KEY and found != expected:
                raise UserError(
                    f"the files of {self._name} are not those of the run: their names or sizes "
                    f"differ; resume with the same files, or {INIT_FROM}"
                )
            if found != expected:
                raise UserError(
                    f"the saved data position has {key} {found}, but {self._name} now has "
                    f"{expected}; resume with the data set, seed and batch size it was saved "
                    f"with, or {INIT_FROM}"
                )
        position = state.get("position")
        if not isinstance(position, int) or position < 0 or position % state["batch_size"]:
            raise UserError(
                f"the saved data position is {position!r}; expected a whole number of batches "
                f"of {state['batch_size']}; the checkpoint is corrupt, resume from another"
            )
        return position


class ArrayBatches(_Positioned):
    """Batches of an in-memory set."""

    def __init__(
        self,
        source: ArraySource,
        *,
        batch_size: int,
        seed: int,
        shard_index: int = 0,
        shard_count: int = 1,
    ) -> None:
        super().__init__(source, batch_size=batch_size, seed=seed)
        self._source = source
        self._order = EpochOrder(len(source), seed=seed)
        self._batch_size = batch_size
        self._rows = batch_size // shard_count
        self._first = shard_index * self._rows

    def __iter__(self) -> ArrayBatches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch, as described in `BatchIterator`; never ends."""
        start = self._position + self._first
        rows = self._order.span(start, start + self._rows)
        self._position += self._batch_size
        return self._source.take(rows)

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called; UserError for a state of another iterator."""
        self._position = self._check_state(state)


class _EndlessSource:
    """One shard of a source in the endless order, with the length and indexing Grain needs."""

    def __init__(
        self, source: ImageSource, order: EpochOrder, *, batch_size: int, first: int, rows: int
    ) -> None:
        self._source = source
        self._order = order
        self._batch_size = batch_size
        self._first = first
        self._rows = rows

    def __len__(self) -> int:
        # Grain needs a finite source; 2^62 examples outlast any run.
        return 2**62

    def __getitem__(self, i: int) -> dict[str, Any]:
        batch, row = divmod(i, self._rows)
        return self._source[self._order[batch * self._batch_size + self._first + row]]


class StreamBatches(_Positioned):
    """Batches of a streamed set, prefetched in Grain's threads."""

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        seed: int,
        shard_index: int = 0,
        shard_count: int = 1,
    ) -> None:
        import grain

        super().__init__(source, batch_size=batch_size, seed=seed)
        self._batch_size = batch_size
        self._shard_count = shard_count
        order = EpochOrder(len(source), seed=seed)
        rows = batch_size // shard_count
        # Elements, not batches, are prefetched: the threads then share the work of one batch,
        # and the buffer is two batches rather than Grain's default of 500.
        options = grain.ReadOptions(
            num_threads=min(16, 2 * (os.cpu_count() or 1)), prefetch_buffer_size=2 * rows
        )
        dataset = (
            grain.MapDataset.source(
                _EndlessSource(
                    source, order, batch_size=batch_size, first=shard_index * rows, rows=rows
                )
            )
            .to_iter_dataset(options)
            .batch(rows, drop_remainder=True)
        )
        self._iterator = iter(dataset)

    def __iter__(self) -> StreamBatches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch, as described in `BatchIterator`; never ends."""
        batch: dict[str, np.ndarray] = next(self._iterator)
        self._position += self._batch_size
        return batch

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called; UserError for a state of another iterator."""
        position = self._check_state(state)
        self._iterator.set_state({"next_index": position // self._shard_count})
        self._position = position


def batches(
    source: ImageSource,
    *,
    batch_size: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
) -> BatchIterator:
    """Returns endless shuffled batches of a source, a function of (seed, step) alone.

    Args:
      source: a set from `diffjax.data.load`, or any `ImageSource`.
      batch_size: examples in a batch, over all shards; may exceed the size of the set.
      seed: of the order, >= 0.
      shard_index: this process's number, in [0, shard_count).
      shard_count: number of processes that share each batch. Process i gets the i-th contiguous
        slice of batch_size / shard_count rows, so an example's row in the global batch does not
        depend on the number of processes.

    Returns:
      An iterator over {"image": uint8 (B, H, W, C), "label": int32 (B,)} with
      B = batch_size / shard_count, and with `get_state` and `set_state`. If the source has
      captions, also "caption": int32 (B,), indices into `source.captions`.

    Raises:
      UserError: an argument is out of range, or batch_size is not a multiple of shard_count.
    """
    check_source(source)
    batch_size = arguments.whole("batch_size", batch_size, least=1)
    seed = arguments.whole("seed", seed)
    shard_count = arguments.whole("shard_count", shard_count, least=1)
    shard_index = arguments.whole("shard_index", shard_index)
    if shard_index >= shard_count:
        raise UserError(f"shard {shard_index} of {shard_count}; expected 0 <= index < count")
    if batch_size % shard_count:
        raise UserError(
            f"batch_size {batch_size} is not divisible by the {shard_count} processes that share "
            f"it; use a multiple of {shard_count}"
        )
    if len(source) == 0:
        raise UserError(f"{source.name}: the set is empty; expected at least one image")
    if isinstance(source, ArraySource):
        return ArrayBatches(
            source,
            batch_size=batch_size,
            seed=seed,
            shard_index=shard_index,
            shard_count=shard_count,
        )
    return StreamBatches(
        source,
        batch_size=batch_size,
        seed=seed,
        shard_index=shard_index,
        shard_count=shard_count,
    )
