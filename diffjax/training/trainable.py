"""The interface between the training loop and the model that is trained."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffjax import data
from diffjax.checkpoints import workdir
from diffjax.distributed.parallel import Strategy

Batch = dict[str, np.ndarray]


class Trainable(Protocol):
    """A resolved config; a state has `step`, `params` and `ema_params`."""

    @property
    def config(self) -> Any:
        """The config."""
        ...

    @property
    def kernels(self) -> Any:
        """Whose `line` says what computes."""
        ...

    @property
    def source(self) -> data.ImageSource:
        """The training images."""
        ...

    @property
    def kept(self) -> dict[str, Any]:
        """What every checkpoint keeps beside the state, for whoever has nothing else; JSON."""
        ...

    @property
    def identity(self) -> workdir.Identity:
        """What it is trained on beside the config and the data."""
        ...

    def owns(self, folder: Path) -> bool:
        """Whether the workdir holds a run of this config to go on with."""
        ...

    def strategy(self) -> Strategy:
        """What runs the step on the devices."""
        ...

    def learning_rate(self) -> Callable[[Any], Any]:
        """step -> learning rate."""
        ...

    def to_compute(self, tree: Any) -> Any:
        """What `frozen` returns, where samples and evaluations are computed."""
        ...

    def init_state(self, *, shardings: Any = None) -> Any:
        """The state of step 0, where a tree of shardings says."""
        ...

    def state_shapes(self) -> Any:
        """The state with shapes for arrays."""
        ...

    def batches(self) -> data.BatchIterator:
        """Endless training batches."""
        ...

    def held_out(self) -> list[Batch]:
        """Batches of one size that are not trained on; [] for none."""
        ...

    def train_step(self, *, axis_name: str | None) -> Any:
        """(state, batch) -> (state, metrics)."""
        ...

    def eval_loss(self) -> Callable[[Any, Batch], Any]:
        """(frozen, batch) -> scalar."""
        ...

    def frozen(self, state: Any) -> Any:
        """What is kept of a state when training is over."""
        ...

    def at_save(self, state: Any) -> Any:
        """The state with what is measured when a checkpoint is written."""
        ...

    def averages(self, state: Any) -> Mapping[float, Any]:
        """sigma_rel -> the averages of which a snapshot is kept with each checkpoint."""
        ...

    def draw(self, frozen: Any, path: Path) -> np.ndarray:
        """Writes a picture of what the model does by now, and returns it."""
        ...

    def finish(self, frozen: Any, folder: Path, *, say: Callable[[str], None]) -> None:
        """Writes the final pictures."""
        ...
