"""Steps whose metrics are not finite: recorded, and skipped if the config allows it.

<workdir>/not_finite.json lists the last of them with the examples of their batches, as indices into
the training set.
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
MOST_IN_A_ROW = 20  # skipped steps in a row after which a run stops
KEPT = 100  # the file lists the last ones

Step = Callable[[Any, Any], tuple[Any, Any]]


def skipping(train_step: Step) -> Step:
    """Wraps a train step: if a metric is not finite, only the step's number is updated.

    Parameters, the optimiser's moments and the averages stay unchanged; the next step has other
    noise and another batch.

    Args:
      train_step: (state, batch) -> (state, metrics), pure; the metrics are scalars that are equal
        on all devices, and include the gradient's norm.

    Returns:
      The same with a further metric `skipped`: 1 if the update was skipped, else 0.
    """

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        new, metrics = train_step(state, batch)
        good = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(metrics)]))
        old = state._replace(step=new.step)
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        return kept, {**metrics, "skipped": 1.0 - good.astype(jnp.float32)}

    return step


def is_finite(metrics: Mapping[str, float]) -> bool:
    """Whether all metrics are finite."""
    return all(math.isfinite(value) for value in metrics.values())


class NotFinite:
    """The record of a run in not_finite.json, and the current number of such steps in a row."""

    def __init__(self, folder: Path, *, start: int, position: Mapping[str, Any]) -> None:
        """Drops the file's entries after `start`, whose steps are taken again.

        Args:
          folder: the workdir.
          start: updates made.
          position: the batch iterator's state after them.
        """
        self.path = folder / FILE
        self.in_a_row = 0
        self._start, self._position = start, dict(position)
        stored = (read_json(self.path) or {}).get("steps", [])
        self._steps = [one for one in stored if one["step"] <= start]
        if len(self._steps) < len(stored):
            self._write()

    def examples(self, step: int) -> list[int]:
        """Indices into the training set of the examples in a step's batch."""
        p = self._position
        order = EpochOrder(p["source_size"], seed=p["seed"])
        first = p["position"] + (step - 1 - self._start) * p["batch_size"]
        return [int(i) for i in order.span(first, first + p["batch_size"])]

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records a step; failures to write the file are ignored."""
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
