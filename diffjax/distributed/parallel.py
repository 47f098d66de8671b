"""How a train step runs on several devices; and the pmap strategy: a replica of the state each."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.distributed.everywhere import AXIS, Everywhere
from diffjax.errors import UserError

Batch = dict[str, np.ndarray]
# (state, batch) -> (state, metrics)
TrainStep = Callable[[Any, Any], tuple[Any, Any]]


class Trainable(Protocol):
    """What a strategy asks of a resolved config."""

    def init_state(self, *, shardings: Any = None) -> Any:
        """The state of step 0."""
        ...

    def state_shapes(self) -> Any:
        """The state with shapes for arrays."""
        ...


class Strategy(Protocol):
    """Where states and batches lie, and what runs a step there.

    Attributes:
      devices: all that take part, in all processes.
      axis_name: what the step is told of them.
      told: how they are arranged, in words.
    """

    @property
    def devices(self) -> list[Any]: ...
    @property
    def axis_name(self) -> str | None: ...
    @property
    def told(self) -> str: ...

    def check(self, setup: Trainable) -> Any:
        """Raises UserError for what can't be laid out."""
        ...

    def init_state(self, setup: Trainable) -> Any:
        """The state of step 0, not yet `spread`."""
        ...

    def compile(self, train_step: TrainStep) -> Any:
        """The step over what `spread` and `shard` return."""
        ...

    def spread(self, tree: Any) -> Any:
        """A state where it is trained."""
        ...

    def first(self, tree: Any) -> Any:
        """Of a state that is spread, or a part of it, what other functions compute with."""
        ...

    def scalars(self, tree: Any) -> Any:
        """A step's metrics as Python floats."""
        ...

    def shard(self, batch: Batch) -> Any:
        """A batch, of which this process has its rows, where it is trained on."""
        ...

    def held_out(self, batch: Batch) -> Any:
        """A batch, of which every process has all, for functions of `first`'s tree."""
        ...

    def abstract(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """What the compiled step takes, in shapes."""
        ...

    def bytes_of(self, tree: Any) -> Any:
        """How much of each array of a tree of shapes a device holds."""
        ...


def check_divides(batch_size: int, *, devices: int, accumulate: int = 1) -> None:
    """Every device gets as many examples in every micro-batch.

    Raises:
      UserError: it does not.
    """
    if batch_size % (devices * accumulate):
        micro = f" and {accumulate} micro-batches" if accumulate > 1 else ""
        raise UserError(
            f"config.train.batch_size = {batch_size} does not divide among {devices} devices"
            f"{micro}: take a multiple of {devices * accumulate}"
        )


class DataParallel:
    """Runs a train step on every device, with equal states and a share of the batch each.

    A process lays out arrays for its own devices, with a leading axis of these: pmap's convention.
    """

    axis_name = AXIS
    told = "a copy of the state each"

    def __init__(self, batch_size: int, *, accumulate: int = 1) -> None:
        """Takes all devices.

        Args:
          batch_size: of all devices together.
          accumulate: micro-batches that a step divides it into.

        Raises:
          UserError: the batch does not divide among the devices.
        """
        self._all = Everywhere()
        self.devices = self._all.devices
        check_divides(batch_size, devices=len(self.devices), accumulate=accumulate)
        ours = [device for device in self.devices if device.process_index == jax.process_index()]
        self._count = len(ours)
        self._sharding = NamedSharding(Mesh(np.asarray(ours), (AXIS,)), PartitionSpec(AXIS))

    def check(self, setup: Trainable) -> None:
        """Whatever the state is, it is laid out whole."""

    def init_state(self, setup: Trainable) -> Any:
        """The state of step 0, on the first device."""
        return setup.init_state()

    def compile(self, train_step: TrainStep) -> Any:
        """The step over (devices, ...) states and batches.

        The old state's buffers are donated, except to a CPU, where XLA copies what it would write
        in place (a moment of Adam's is read twice), and memory is not what is short.
        """
        donated = () if self.devices[0].platform == "cpu" else (0,)
        return jax.pmap(train_step, axis_name=AXIS, donate_argnums=donated, devices=self.devices)

    def spread(self, tree: Any) -> Any:
        """A copy a device."""
        return self.replicate(tree)

    def replicate(self, tree: Any) -> Any:
        """A leading axis with one copy a device."""
        count = self._count

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            return jax.device_put(np.broadcast_to(x, (count, *x.shape)), self._sharding)

        return jax.tree.map(put, tree)

    def first(self, tree: Any) -> Any:
        """The same without the axis of devices, a copy on each as before."""
        copies = [
            _without_device_axis(jax.tree.map(lambda x, i=i: x.addressable_shards[i].data, tree))
            for i in range(self._count)
        ]
        if len(self.devices) == 1:
            return copies[0]
        join = jax.make_array_from_single_device_arrays
        return jax.tree.map(lambda *x: join(x[0].shape, self._all.whole, list(x)), *copies)

    def scalars(self, tree: Any) -> Any:
        """A tree of replicated scalars as Python floats; waits for the devices."""
        return jax.tree.map(lambda x: float(np.asarray(x.addressable_shards[0].data)[0]), tree)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows (B, ...) as (its devices, B / their number, ...), a part on each."""
        count = self._count
        return {
            name: jax.device_put(x.reshape(count, -1, *x.shape[1:]), self._sharding)
            for name, x in batch.items()
        }

    def held_out(self, batch: Batch) -> Any:
        """The batch, split among all devices where it divides."""
        return self._all.split(batch)

    def abstract(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """What `compile`'s step takes, in shapes."""
        count = len(self.devices)

        def split(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count, x.shape[0] // count, *x.shape[1:]), x.dtype)

        def copies(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count, *x.shape), x.dtype)

        return jax.tree.map(copies, state), jax.tree.map(split, batch)

    def bytes_of(self, tree: Any) -> Any:
        """How much of each array a device holds: all of it."""
        return jax.tree.map(lambda x: math.prod(x.shape) * np.dtype(x.dtype).itemsize, tree)


@jax.jit
def _without_device_axis(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)
