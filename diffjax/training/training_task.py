"""The interface between the training loop and the model being trained."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffjax import data
from diffjax.checkpoints import workdir
from diffjax.distributed.strategy import Strategy
from diffjax.training.train_step import TrainState, TrainStep

Batch = dict[str, np.ndarray]


class LoopSettings(NamedTuple):
    """How long a run is and what happens when; all but the last in steps.

    Attributes:
      steps: length of the run.
      batch_size: of all devices together.
      log_every: rows of metrics.
      eval_every: held-out losses.
      checkpoint_every: checkpoints.
      sample_every: pictures.
      skip_not_finite: whether an update whose metrics are not finite is left out, rather than the
        run ended.
    """

    steps: int
    batch_size: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    sample_every: int
    skip_not_finite: bool = False


class TrainingTask(Protocol):
    """A model with its data, its objective and its settings."""

    @property
    def settings(self) -> LoopSettings:
        """Of the loop."""
        ...

    @property
    def config_dict(self) -> dict[str, Any]:
        """The config as it is stored in config.json."""
        ...

    @property
    def description(self) -> str:
        """The training set, for the log."""
        ...

    @property
    def kernels(self) -> Any:
        """The kernel backend; `.line` describes it for the log."""
        ...

    @property
    def about_data(self) -> dict[str, Any]:
        """What checkpoints store of the data, so that a model can be used without it; JSON."""
        ...

    @property
    def identity(self) -> workdir.Identity:
        """What the model is trained on besides the config and the data."""
        ...

    def owns(self, folder: Path) -> bool:
        """Whether the workdir holds a run of this config to continue."""
        ...

    def strategy(self) -> Strategy:
        """How the step runs on the devices."""
        ...

    def learning_rate(self) -> Callable[[Any], Any]:
        """step -> learning rate."""
        ...

    def init_state(self, *, shardings: Any = None) -> TrainState:
        """The state of step 0, placed by a tree of shardings."""
        ...

    def state_shapes(self) -> TrainState:
        """The state with jax.ShapeDtypeStruct for arrays."""
        ...

    def batches(self) -> data.BatchIterator:
        """Endless training batches; a process gets its own rows."""
        ...

    def held_out(self) -> list[Batch]:
        """Batches of one size that are not trained on; [] for none."""
        ...

    def train_step(self) -> TrainStep:
        """(state, batch) -> (state, metrics)."""
        ...

    def eval_loss(self) -> Callable[[Any, Any], Any]:
        """(averaged, batch) -> scalar."""
        ...

    def averaged(self, state: TrainState) -> Any:
        """What is evaluated and sampled: the averaged parameters, and what belongs to them."""
        ...

    def before_save(self, state: TrainState) -> TrainState:
        """The state with what is measured when a checkpoint is written."""
        ...

    def to_stored(self, state: TrainState) -> Any:
        """A state as checkpoints store it: a NamedTuple with `params`."""
        ...

    def from_stored(self, stored: Any) -> TrainState:
        """The inverse of `to_stored`."""
        ...

    def power_emas(self, stored: Any) -> Mapping[float, Any]:
        """sigma_rel -> average, of those whose snapshots are kept with each checkpoint."""
        ...

    def to_compute(self, averaged: Any) -> Any:
        """What `averaged` returns, on the devices that sample and evaluate."""
        ...

    def write_samples(self, averaged: Any, path: Path) -> np.ndarray:
        """Writes a picture of what the model does by now, and returns it."""
        ...

    def write_final_pictures(
        self, averaged: Any, folder: Path, *, say: Callable[[str], None]
    ) -> None:
        """Writes the pictures of a finished run."""
        ...
