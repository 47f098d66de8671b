"""The fsdp strategy: each device holds a shard of every large array of the state.

The mesh has the axes (data, fsdp). The batch is split over both; a large array of the state over
`fsdp`, along one of its own axes (Rajbhandari et al. 2020, ZeRO, stage 3: parameters, gradients and
the optimizer's moments), with a copy for each index along `data`. XLA gathers a layer's parameters
where it needs them. Small arrays are replicated, since communicating them costs more than storing
them.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffjax.distributed import processes
from diffjax.distributed.strategy import HasState, Strategy
from diffjax.errors import UserError

DATA, FSDP = "data", "fsdp"


def sharded_axis(shape: Sequence[int], *, parts: int, min_size: int) -> int | None:
    """The axis along which an array is sharded: the longest divisible one; ties go to the last.

    Args:
      shape: the array's.
      parts: number of shards.
      min_size: number of elements below which it is replicated.

    Returns:
      The axis; None for a replicated array.

    >>> sharded_axis((3, 3, 64, 128), parts=8, min_size=1024)
    3
    """
    if parts == 1 or math.prod(shape) < min_size:
        return None
    fitting = [axis for axis, size in enumerate(shape) if size and size % parts == 0]
    return max(fitting, key=lambda axis: (shape[axis], axis), default=None)


def path_of(path: Any) -> str:
    """An array's path in a state, as overrides match it: "params/head/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Fsdp(Strategy):
    """A shard of the state and of the batch on each device."""

    def __init__(
        self,
        *,
        fsdp: int = 0,
        min_size: int = 2**16,
        overrides: Sequence[tuple[str, int | None]] = (),
    ) -> None:
        """Arranges all devices as (data, fsdp).

        Args:
          fsdp: devices that share one copy of the state; 0 for all of them.
          min_size: number of elements below which an array is replicated.
          overrides: (regular expression, axis or None): the first that matches part of an array's
            path sets its axis.

        Raises:
          UserError: `fsdp` does not divide the number of devices.
        """
        devices = processes.devices()
        count = len(devices)
        self.parts = fsdp or count
        if count % self.parts:
            raise UserError(
                f"config.parallel.fsdp = {fsdp} does not divide the {count} devices: use a "
                f"divisor of {count}, or 0 for all of them"
            )
        self.min_size, self.overrides = min_size, tuple((p, axis) for p, axis in overrides)
        grid = np.asarray(devices).reshape(-1, self.parts)
        super().__init__(
            Mesh(grid, (DATA, FSDP)),
            name="fsdp",
            description=f"data {len(grid)} x fsdp {self.parts}",
        )

    def shardings(self, tree: Any) -> Any:
        """The sharding of each array of a tree; only shapes and paths are read.

        Raises:
          UserError: an override's axis does not exist, or is not divisible.
        """

        def place(path: Any, x: Any) -> NamedSharding:
            axis = self._axis(path_of(path), x.shape)
            spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, FSDP)
            return NamedSharding(self.mesh, spec)

        return jax.tree_util.tree_map_with_path(place, tree)

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

    def check(self, task: HasState) -> None:
        """Compares the overrides with the state.

        Raises:
          UserError: an override with an invalid axis, or whose pattern matches no array.
        """
        shapes = task.state_shapes()
        paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        for pattern, axis in self.overrides:
            if not any(re.search(pattern, path) for path in paths):
                raise UserError(
                    f"config.parallel.overrides has ({pattern!r}, {axis}), which matches no "
                    f"array's path: expected a part of one, such as {paths[1]!r}"
                )
        self.shardings(shapes)
