"""How a train step runs on several devices: jit over a mesh of them, with the batch split.

A train step is a function of the whole state and the whole batch, and refers to no device. A
strategy decides where each array of the state is placed; XLA divides the computation accordingly
and inserts the collectives (Xu et al. 2021, GSPMD), such as the mean of gradients over devices.
`DataParallel` keeps a copy of the state on each device, `fsdp.Fsdp` cuts it into parts.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.distributed import processes
from diffjax.distributed.placement import AXIS
from diffjax.errors import UserError

Batch = dict[str, np.ndarray]
# (state, batch) -> (state, metrics)
TrainStep = Callable[[Any, Any], tuple[Any, Any]]


class HasState(Protocol):
    """The part of a training task that a strategy uses."""

    def init_state(self, *, shardings: Any = None) -> Any:
        """The state of step 0."""
        ...

    def state_shapes(self) -> Any:
        """The state with jax.ShapeDtypeStruct for arrays."""
        ...


class Strategy(abc.ABC):
    """Places states and batches on all devices of the run, and compiles a step over them.

    Attributes:
      devices: of all processes.
      mesh: the same, with named axes, over all of which a batch is split.
      name: its name in `config.parallel.strategy`.
      description: how the devices are arranged, in words.
    """

    def __init__(self, mesh: Mesh, *, name: str, description: str) -> None:
        self.mesh, self.name, self.description = mesh, name, description
        self.devices: list[Any] = list(mesh.devices.flat)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    @abc.abstractmethod
    def shardings(self, tree: Any) -> Any:
        """The sharding of each array of a state, or of a part of it; only shapes are read."""

    @abc.abstractmethod
    def check(self, task: HasState) -> None:
        """Raises UserError for options that are incompatible with the state."""

    def init_state(self, task: HasState) -> Any:
        """The state of step 0, computed in its shards."""
        return task.init_state(shardings=self.shardings(task.state_shapes()))

    def compile(self, train_step: TrainStep) -> Any:
        """The step over what `shard_state` and `shard_batch` return.

        The old state's buffers are donated, except on a CPU, where XLA copies what it would write
        in place (a moment of Adam's is read twice), and memory is not scarce.
        """

        def step(state: Any, batch: Batch) -> Any:
            new, metrics = train_step(state, batch)
            constrain = jax.lax.with_sharding_constraint
            return constrain(new, self.shardings(new)), constrain(metrics, self.replicated)

        donated = () if self.devices[0].platform == "cpu" else (0,)
        return jax.jit(step, donate_argnums=donated)

    def shard_state(self, tree: Any) -> Any:
        """A state, or a part of it, on the devices."""
        return jax.tree.map(processes.put, tree, self.shardings(tree))

    def shard_batch(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch on the devices, split among them; a process passes its own rows (b, ...)."""
        put = jax.make_array_from_process_local_data
        return {name: put(self._rows, x) for name, x in batch.items()}

    def shard_held_out(self, batch: Batch) -> dict[str, jax.Array]:
        """A batch of which every process has all rows, split if it divides, else replicated."""
        return {name: processes.put(x, self._of_batch(x.shape)) for name, x in batch.items()}

    def _of_batch(self, shape: Sequence[int]) -> NamedSharding:
        return self.replicated if shape[0] % len(self.devices) else self._rows

    def scalars(self, metrics: Any) -> Any:
        """A step's metrics as Python floats; waits for the devices."""
        return jax.tree.map(float, metrics)

    def abstract_inputs(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """The compiled step's inputs, as jax.ShapeDtypeStruct with shardings."""

        def abstract(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        of_batch = jax.tree.map(lambda x: self._of_batch(x.shape), batch)
        return (
            jax.tree.map(abstract, state, self.shardings(state)),
            jax.tree.map(abstract, batch, of_batch),
        )

    def bytes_per_device(self, tree: Any) -> Any:
        """The bytes of each array of a state that a device holds."""

        def size(x: Any, sharding: NamedSharding) -> int:
            return math.prod(sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize

        return jax.tree.map(size, tree, self.shardings(tree))


class DataParallel(Strategy):
    """The strategy "pmap": a copy of the state on each device, and an equal share of the batch."""

    def __init__(self) -> None:
        mesh = Mesh(np.asarray(processes.devices()), (AXIS,))
        super().__init__(mesh, name="pmap", description="a copy of the state each")

    def check(self, task: HasState) -> None:
        """Every state fits."""

    def shardings(self, tree: Any) -> Any:
        """All arrays on every device."""
        return jax.tree.map(lambda _: self.replicated, tree)


def check_divides(batch_size: int, *, devices: int, accumulate: int = 1) -> None:
    """Raises UserError if the devices would not get equal shares of each micro-batch."""
    if batch_size % (devices * accumulate):
        micro = f" and {accumulate} micro-batches" if accumulate > 1 else ""
        raise UserError(
            f"config.train.batch_size = {batch_size} does not divide among {devices} devices"
            f"{micro}: use a multiple of {devices * accumulate}"
        )
