"""All devices of the run, for functions of a batch: sampling, held-out losses, likelihoods.

Such a function is jitted and knows of no device. Its parameters lie on every device, or in parts on
all of them; its batch is split, and XLA splits the work accordingly.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.distributed import hosts

AXIS = "batch"


class Everywhere:
    """Puts trees on all devices of the run. Where there is but one, they stay as they are."""

    def __init__(self) -> None:
        self.devices = hosts.devices()
        mesh = Mesh(np.asarray(self.devices), (AXIS,))
        self.whole = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))

    def copies(self, tree: Any) -> Any:
        """A copy of each array a device."""
        if len(self.devices) == 1:
            return jax.device_put(tree)
        return jax.tree.map(lambda x: hosts.put(x, self.whole), tree)

    def fits(self, size: int) -> int:
        """The least batch of at least `size` that divides among the devices."""
        return -(-size // len(self.devices)) * len(self.devices)

    def split(self, tree: Any) -> Any:
        """(B, ...) arrays, the same in every process, each device with its run of them.

        Where B does not divide among the devices, every device has them all.
        """
        if len(self.devices) == 1:
            return tree

        def lies(x: Any) -> jax.Array:
            divides = x.shape[0] % len(self.devices) == 0
            return hosts.put(x, self._split if divides else self.whole)

        return jax.tree.map(lies, tree)
