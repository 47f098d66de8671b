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
    """The length of a run and the intervals of its periodic work, in steps.

    Attributes:
      steps: length of the run.
      batch_size: of all devices together.
      log_every: rows of metrics.
      eval_every: held-out losses.
      checkpoint_every: checkpoints.
      sample_every: pictures.
      keep_every: of these, checkpoints that are kept for good; 0: none.
      skip_not_finite: whether an update whose metrics are not finite is skipped, instead of ending
        the run.
    """

    steps: int
    batch_size: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    sample_every: int
    skip_not_finite: bool = False
    keep_every: int = 0


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
        """Description of the data, stored so that a model can be used without it; JSON."""
        ...

    @property
    def identity(self) -> workdir.Identity:
        """The first stage and the text encoder that the model is trained with."""
        ...

    def owns(self, folder: Path) -> bool:
        """Whether the workdir holds a run of this config to resume."""
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

    def read_start(self) -> Any:
        """The weights of another run that this one starts from, read and compared; or None."""
        ...

    def started(self, state: TrainState, begin: Any, *, log: Callable[[str], None]) -> TrainState:
        """The state of step 0 with what fits of the weights that `read_start` has read."""
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
        """The averaged parameters, and further arrays that evaluation and sampling need."""
        ...

    def before_save(self, state: TrainState) -> TrainState:
        """The state to save, with values measured only for checkpoints."""
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
        """The output of `averaged`, on the devices that sample and evaluate."""
        ...

    def write_samples(self, averaged: Any, path: Path) -> np.ndarray:
        """Writes a picture of current samples, and returns it."""
        ...

    def write_final_pictures(
        self, averaged: Any, folder: Path, *, log: Callable[[str], None]
    ) -> None:
        """Writes the pictures of a finished run."""
        ...
