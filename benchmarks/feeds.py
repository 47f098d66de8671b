"""How batches reach a train step: one by one, several stacked, or by their indices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Batch = dict[str, np.ndarray]
Step = Callable[[Any, Any], tuple[Any, Any]]
STACKED = 8  # steps of a scan


class Feed(NamedTuple):
    """A train step's input.

    Attributes:
      around: a step of a batch -> a step of what `batch` returns.
      batch: the input of a number of a call, on the device.
      steps: train steps of a call.
    """

    around: Callable[[Step], Step]
    batch: Callable[[int], Any]
    steps: int = 1


def one_by_one(batches: Sequence[Batch], put: Callable[[Batch], Any]) -> Feed:
    """A batch a step from the host, as in training."""
    return Feed(lambda step: step, lambda number: put(batches[number % len(batches)]))


def stacked(batches: Sequence[Batch], put: Callable[[Batch], Any]) -> Feed:
    """STACKED batches from the host, and one dispatch for all of them."""
    several = [batches[i % len(batches)] for i in range(STACKED)]
    stack = {name: np.stack([batch[name] for batch in several]) for name in several[0]}

    def around(step: Step) -> Step:
        return lambda state, xs: jax.lax.scan(step, state, xs)

    return Feed(around, lambda _: put(stack), STACKED)


def resident(batches: Sequence[Batch], put: Callable[[Batch], Any]) -> Feed:
    """All batches on the device once; a step gets indices from the host."""
    pool = put({name: np.concatenate([b[name] for b in batches]) for name in batches[0]})
    size, count = len(batches[0]["image"]), len(batches) * len(batches[0]["image"])
    draw = np.random.default_rng(0)
    indices = [draw.permutation(count)[:size].astype(np.int32) for _ in range(len(batches))]

    def around(step: Step) -> Step:
        def indexed(state: Any, fed: Any) -> tuple[Any, Any]:
            return step(state, {name: x[fed["index"]] for name, x in fed["pool"].items()})

        return indexed

    def batch(number: int) -> Any:
        return {"pool": pool, **put({"index": indices[number % len(indices)]})}

    return Feed(around, batch)


FEEDS: Mapping[str, Callable[..., Feed]] = {
    "batch": one_by_one,
    "scan": stacked,
    "resident": resident,
}
