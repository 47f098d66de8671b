"""The pmap strategy: one replica of the state a device, the batch split among them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.errors import UserError
from diffjax.training.state import TrainStep

AXIS = "batch"


class DataParallel:
    """Runs a train step on every local device, with equal states and a share of the batch each."""

    def __init__(self, batch_size: int) -> None:
        """Takes all local devices.

        Raises:
          UserError: the batch does not divide among the devices.
        """
        self.devices = jax.local_devices()
        if batch_size % len(self.devices):
            raise UserError(
                f"config.train.batch_size = {batch_size} does not divide among "
                f"{len(self.devices)} devices: take a multiple of {len(self.devices)}"
            )
        self._sharding = NamedSharding(Mesh(np.asarray(self.devices), (AXIS,)), PartitionSpec(AXIS))

    def compile(self, train_step: TrainStep) -> Any:
        """The step over (devices, ...) states and batches.

        The old state's buffers are donated, except to a CPU, where XLA copies what it would write
        in place (a moment of Adam's is read twice), and memory is not what is short.
        """
        donated = () if self.devices[0].platform == "cpu" else (0,)
        return jax.pmap(train_step, axis_name=AXIS, donate_argnums=donated, devices=self.devices)

    def replicate(self, tree: Any) -> Any:
        """A leading axis with one copy a device."""
        count = len(self.devices)

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            return jax.device_put(np.broadcast_to(x, (count, *x.shape)), self._sharding)

        return jax.tree.map(put, tree)

    def first(self, tree: Any) -> Any:
        """The first device's copy, there."""
        return _without_device_axis(jax.tree.map(lambda x: x.addressable_shards[0].data, tree))

    def scalars(self, tree: Any) -> Any:
        """A tree of replicated scalars as Python floats; waits for the devices."""
        return jax.tree.map(lambda x: float(np.asarray(x.addressable_shards[0].data)[0]), tree)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """(B, ...) arrays as (devices, B / devices, ...), each part on its device."""
        count = len(self.devices)
        return {
            name: jax.device_put(x.reshape(count, -1, *x.shape[1:]), self._sharding)
            for name, x in batch.items()
        }


@jax.jit
def _without_device_axis(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)
