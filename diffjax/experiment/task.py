"""What diffusion models and autoencoders have in common as a `training_task.TrainingTask`."""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from diffjax import data
from diffjax.checkpoints import workdir
from diffjax.distributed.strategy import Strategy
from diffjax.experiment import init_from, optimisation, run, strategies
from diffjax.experiment.dataset import load_held_out
from diffjax.training.gc_pause import gc_disabled
from diffjax.training.train_step import (
    StepParts,
    TrainState,
    TrainStep,
    init_state,
    make_train_step,
    state_shapes,
)
from diffjax.training.training_task import LoopSettings


class ConfiguredTask(abc.ABC):
    """A task whose settings follow from its config, and whose step from its `parts`."""

    @property
    @abc.abstractmethod
    def config(self) -> Any:
        """The config, complete."""

    @property
    @abc.abstractmethod
    def source(self) -> data.ImageSource:
        """The training set."""

    @property
    @abc.abstractmethod
    def identity(self) -> workdir.Identity:
        """What the model depends on besides its config and data."""

    @property
    @abc.abstractmethod
    def parts(self) -> StepParts:
        """The components of the train step."""

    @property
    def settings(self) -> LoopSettings:
        """The settings of the training loop."""
        return optimisation.loop_settings(self.config)

    @property
    def config_dict(self) -> dict[str, Any]:
        """The config as it is stored."""
        stored: dict[str, Any] = self.config.to_dict()
        return stored

    @property
    def description(self) -> str:
        """The training set, for the log."""
        return f"{len(self.source)} examples {self.source.image_shape}"

    def owns(self, folder: Path) -> bool:
        """Whether the workdir holds a run of this config to resume."""
        return run.owns(self, folder)

    def strategy(self) -> Strategy:
        """The strategy of `config.parallel`."""
        return strategies.strategy(self.config)

    def learning_rate(self) -> Callable[[Any], Any]:
        """step -> learning rate."""
        return optimisation.learning_rate(self.config)

    def to_compute(self, averaged: Any) -> Any:
        """The averaged parameters on the devices that sample and evaluate."""
        return strategies.to_compute(averaged, self.config)

    @gc_disabled()
    def init_state(self, *, shardings: Any = None) -> TrainState:
        """The state of step 0, placed by a tree of shardings."""
        return init_state(self.parts, shardings=shardings)

    def read_start(self) -> init_from.Start | None:
        """What config.train.init_from names, read and compared; None if it is empty."""
        return init_from.read(self.config, self.to_stored(self.state_shapes()))

    def started(
        self, state: TrainState, begin: init_from.Start, *, log: Callable[[str], None]
    ) -> TrainState:
        """The state of step 0 with the arrays of another run that fit, which are listed."""
        return self.from_stored(init_from.start(self.to_stored(state), begin, log=log))

    @abc.abstractmethod
    def to_stored(self, state: TrainState) -> Any:
        """A state as checkpoints store it."""

    @abc.abstractmethod
    def from_stored(self, stored: Any) -> TrainState:
        """The inverse of `to_stored`."""

    def state_shapes(self) -> TrainState:
        """The state with jax.ShapeDtypeStruct for arrays; nothing is computed."""
        return state_shapes(self.parts)

    def parameter_shapes(self) -> Any:
        """The averaged parameters with jax.ShapeDtypeStruct for arrays."""
        return self.state_shapes().ema_params

    def train_step(self) -> TrainStep:
        """The config's train step; see `make_train_step`."""
        return make_train_step(self.parts)

    def load_held_out(self) -> data.ImageSource | None:
        """The held-out examples, or None."""
        return load_held_out(self.config, self.source)

    def own_rows(self, source: data.ImageSource) -> data.BatchIterator:
        """Endless training batches of a source: this process's rows of each."""
        return data.batches(
            source,
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
