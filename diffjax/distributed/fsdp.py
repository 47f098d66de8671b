"""The fsdp strategy: one state for all devices, of which each holds a part of every large array.

The train step is jitted over a mesh of axes (data, fsdp) and knows of no device. What is declared
is where arrays lie: the batch is split over both axes; a large array of the state over `fsdp`
along one of its own axes (Rajbhandari et al. 2020, ZeRO, stage 3: parameters, their gradients and
the optimiser's moments alike), and is the same along `data`. XLA gathers a layer's parameters
where it needs them. Small arrays are everywhere: a message costs more than they do.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.distributed import hosts
from diffjax.distributed.parallel import Batch, Trainable, TrainStep
from diffjax.errors import UserError

DATA, FSDP = "data", "fsdp"


def sharded_axis(shape: Sequence[int], *, parts: int, min_size: int) -> int | None:
    """The axis along which an array is cut: its longest that divides, the last of equal ones.

    Args:
      shape: the array's.
      parts: how many parts it is cut into.
      min_size: elements below which it stays whole.

    Returns:
      The axis; None where the array stays whole.

    >>> sharded_axis((3, 3, 64, 128), parts=8, min_size=1024)
    3
    """
    if parts == 1 or math.prod(shape) < min_size:
        return None
    fitting = [axis for axis, size in enumerate(shape) if size and size % parts == 0]
    return max(fitting, key=lambda axis: (shape[axis], axis), default=None)


def path_of(path: Any) -> str:
    """A leaf's place in a state as overrides are matched against: "params/head/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Fsdp:
    """Runs a train step on every device, with a part of the state and of the batch each."""

    # Under jit the step sees the whole batch.
    axis_name = None

    def __init__(
        self,
        *,
        fsdp: int = 0,
        min_size: int = 2**16,
        overrides: Sequence[tuple[str, int | None]] = (),
    ) -> None:
        """Takes all devices.

        Args:
          fsdp: devices that share one copy of the state; 0 for all of them.
          min_size: elements below which an array is not cut.
          overrides: (regular expression, axis or None): the first that is found in an array's path
            decides in place of the size.

        Raises:
          UserError: the devices do not divide into copies of `fsdp`.
        """
        self.devices = hosts.devices()
        count = len(self.devices)
        self.parts = fsdp or count
        if count % self.parts:
            raise UserError(
                f"config.parallel.fsdp = {fsdp} does not divide the {count} devices: take a "
                f"divisor of {count}, or 0 for all of them"
            )
        self.min_size, self.overrides = min_size, tuple((p, axis) for p, axis in overrides)
        grid = np.asarray(self.devices).reshape(-1, self.parts)
        self.mesh = Mesh(grid, (DATA, FSDP))
        self.told = f"data {len(grid)} x fsdp {self.parts}"
        self.whole = NamedSharding(self.mesh, PartitionSpec())
        self._rows = NamedSharding(self.mesh, PartitionSpec((DATA, FSDP)))

    def shardings(self, tree: Any) -> Any:
        """Where each array of a tree lies; only shapes and paths are looked at.

        Raises:
          UserError: an override's axis is not there, or does not divide.
        """

        def lies(path: Any, x: Any) -> NamedSharding:
            axis = self._axis(path_of(path), x.shape)
            spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, FSDP)
            return NamedSharding(self.mesh, spec)

        return jax.tree_util.tree_map_with_path(lies, tree)

    def _axis(self, path: str, shape: Sequence[int]) -> int | None:
        for pattern, axis in self.overrides:
            if not re.search(pattern, path):
                continue
            if axis is not None and (axis >= len(shape) or shape[axis] % self.parts):
                raise UserError(
                    f"config.parallel.overrides has ({pattern!r}, {axis}), but {path} of shape "
                    f"{tuple(shape)} can't be cut into {self.parts} there: expected an axis that "
                    "divides, or None"
                )
            return axis
        return sharded_axis(shape, parts=self.parts, min_size=self.min_size)

    def init_state(self, setup: Trainable) -> Any:
        """The state of step 0, made in parts.

        Raises:
          UserError: an override that can't be, or that no array answers to.
        """
        return setup.init_state(shardings=self.shardings(self.check(setup)))

    def check(self, setup: Trainable) -> Any:
        """The state in shapes, once every override is seen to fit some array of it.

        Raises:
          UserError: an override that can't be, or that no array answers to.
        """
        shapes = setup.state_shapes()
        paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        for pattern, axis in self.overrides:
            if not any(re.search(pattern, path) for path in paths):
                raise UserError(
                    f"config.parallel.overrides has ({pattern!r}, {axis}), which is found in no "
                    f"array's path: expected part of one, such as {paths[1]!r}"
                )
        self.shardings(shapes)
        return shapes

    def compile(self, train_step: TrainStep) -> Any:
        """The step over states and batches that lie where `spread` and `shard` put them.

        The old state's buffers are donated, except to a CPU; see `DataParallel.compile`.
        """

        def step(state: Any, batch: Batch) -> Any:
            new, metrics = train_step(state, batch)
            constrain = jax.lax.with_sharding_constraint
            return constrain(new, self.shardings(new)), constrain(metrics, self.whole)

        donated = () if self.devices[0].platform == "cpu" else (0,)
        return jax.jit(step, donate_argnums=donated)

    def spread(self, tree: Any) -> Any:
        """Each array's parts on their devices."""
        return jax.tree.map(hosts.put, tree, self.shardings(tree))

    def first(self, tree: Any) -> Any:
        """The tree itself: there is but one copy."""
        return tree

    def scalars(self, tree: Any) -> Any:
        """A tree of scalars as Python floats; waits for the devices."""
        return jax.tree.map(float, tree)

    def shard(self, batch: Batch) -> dict[str, jax.Array]:
        """This process's rows of (B, ...) arrays, split among its devices."""
        put = jax.make_array_from_process_local_data
        return {name: put(self._rows, x) for name, x in batch.items()}

    def of_batch(self, shape: Sequence[int]) -> NamedSharding:
        """Where an array of a batch that every process has lies; whole if it does not divide."""
        return self.whole if shape[0] % len(self.devices) else self._rows

    def held_out(self, batch: Batch) -> Any:
        """The batch, split among all devices where it divides."""
        return {name: hosts.put(x, self.of_batch(x.shape)) for name, x in batch.items()}

    def abstract(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """What `compile`'s step takes, in shapes."""
        struct = jax.ShapeDtypeStruct
        return (
            jax.tree.map(
                lambda x, s: struct(x.shape, x.dtype, sharding=s), state, self.shardings(state)
            ),
            jax.tree.map(
                lambda x: struct(x.shape, x.dtype, sharding=self.of_batch(x.shape)), batch
            ),
        )

    def bytes_of(self, tree: Any) -> Any:
        """How much of each array a device holds."""
        return jax.tree.map(
            lambda x, s: math.prod(s.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize,
            tree,
            self.shardings(tree),
        )
