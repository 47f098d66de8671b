"""Steps whose metrics are not finite: left out where the config says so, and written down.

<workdir>/not_finite.json lists the last of them with the examples of their batches: numbers into
the training set in its order, by which the images can be looked at.
"""

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.checkpoints.run_config import read_json
from diffjax.data.batches import EpochOrder
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.files import atomic_write

FILE = "not_finite.json"
MOST_IN_A_ROW = 20  # of a run that leaves such steps out
KEPT = 100  # steps in the file, the last ones

Step = Callable[[Any, Any], tuple[Any, Any]]


def skipping(train_step: Step) -> Step:
    """A train step that changes nothing but the step's number where a metric is not finite.

    The optimiser's moments and the averages stay as they were, too; the next step draws other
    noise and another batch.

    Args:
      train_step: (state, batch) -> (state, metrics), pure; the metrics are scalars that are equal
        on all devices, and hold the gradient's norm.

    Returns:
      A function alike, with the metric `skipped`: 1 where the update was left out, else 0.
    """

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        new, metrics = train_step(state, batch)
        good = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(metrics)]))
        old = state._replace(step=new.step)
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        return kept, {**metrics, "skipped": 1.0 - good.astype(jnp.float32)}

    return step


def is_finite(metrics: Mapping[str, float]) -> bool:
    """Whether all of them are."""
    return all(math.isfinite(value) for value in metrics.values())


class NotFinite:
    """The record of a run: what it writes to not_finite.json, and how many came in a row."""

    def __init__(self, folder: Path, *, start: int, position: Mapping[str, Any]) -> None:
        """Drops what the file says of steps after `start`, which will be taken again.

        Args:
          folder: the workdir.
          start: updates made.
          position: the batch iterator's state before the next one.
        """
        self.path = folder / FILE
        self.in_a_row = 0
        self._start, self._position = start, dict(position)
        stored = (read_json(self.path) or {}).get("steps", [])
        self._steps = [one for one in stored if one["step"] <= start]
        if len(self._steps) < len(stored):
            self._write()

    def examples(self, step: int) -> list[int]:
        """Numbers, into the training set, of the examples in a step's batch."""
        p = self._position
        order = EpochOrder(p["source_size"], seed=p["seed"])
        first = p["position"] + (step - 1 - self._start) * p["batch_size"]
        return [int(i) for i in order.span(first, first + p["batch_size"])]

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes down a step; a disk that is full must not hide what is wrong with the run."""
        self.in_a_row += 1
        bad = {name: str(x) for name, x in metrics.items() if not math.isfinite(x)}
        self._steps.append({"step": step, "metrics": bad, "examples": self.examples(step)})
        with contextlib.suppress(OSError, UserError):
            self._write()

    def _write(self) -> None:
        self._steps = self._steps[-KEPT:]
        if not processes.is_primary():
            return
        text = '{"steps": [\n' + ",\n".join(json.dumps(one) for one in self._steps) + "\n]}\n"
        atomic_write(self.path, lambda file: file.write(text.encode()))
