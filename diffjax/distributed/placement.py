"""Placing arrays on all devices of the run, for functions of a batch: sampling, held-out losses.

Such a function is jitted and refers to no device. Its parameters are replicated or sharded, its
batch is split, and XLA divides the computation accordingly.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.distributed import processes

AXIS = "batch"


class Placement:
    """Puts trees on all devices of the run; with one device they are left as they are."""

    def __init__(self) -> None:
        self.devices = processes.devices()
        mesh = Mesh(np.asarray(self.devices), (AXIS,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))

    def replicate(self, tree: Any) -> Any:
        """A copy of each array on every device."""
        if len(self.devices) == 1:
            return jax.device_put(tree)
        return jax.tree.map(lambda x: processes.put(x, self._replicated), tree)

    def round_up_batch(self, size: int) -> int:
        """The least batch size of at least `size` that divides among the devices."""
        return -(-size // len(self.devices)) * len(self.devices)

    def shard_batch(self, tree: Any) -> Any:
        """Splits (B, ...) arrays, the same in every process, into contiguous slices.

        Where B does not divide among the devices, every device has the whole array.
        """
        if len(self.devices) == 1:
            return tree

        def place(x: Any) -> jax.Array:
            divides = x.shape[0] % len(self.devices) == 0
            return processes.put(x, self._split if divides else self._replicated)

        return jax.tree.map(place, tree)
