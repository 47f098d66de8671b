"""The interface between the train step and the objective.

The train step passes an objective one batch and gets the loss and all gradients. An objective's own
parameters and history (a schedule, a weighting, past losses, a discriminator) are its
`ObjectiveState`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from diffjax.types import Array

# Name of a random stream -> its key at this step.
Keys = Callable[[str], Array]


class ObjectiveState(NamedTuple):
    """An objective's state besides the model's parameters; {} and None if it has none.

    Attributes:
      params: trained by gradients.
      history: other arrays carried from step to step, such as past losses at each time.
      frozen: arrays that never change, such as a teacher's parameters. They are not stored in
        checkpoints, but read again from where they came from.
    """

    params: Any
    history: Any
    frozen: Any = None


class LossInputs(NamedTuple):
    """A batch, or a micro-batch of it, and the keys of its randomness.

    Attributes:
      x_0: (B, ...) data.
      cond: the condition, or None.
      key: keys of the step's random streams by name.
      indices: (B,) positions of the examples in the whole batch.
      batch_size: of the whole batch.
      step: int32 scalar: updates made before this one.
      averaged: the moving average of the model's parameters before this step; None on held-out
        examples.
      noise: (B, ...) the noise that x_0 is paired with, or None where it is drawn.
    """

    x_0: Array
    cond: Any
    key: Keys
    indices: Array
    batch_size: int
    step: Array
    averaged: Any = None
    noise: Array | None = None


class LossAndGrads(NamedTuple):
    """The loss of a batch and its gradients.

    Attributes:
      loss: scalar, the mean over the batch.
      grads: with respect to the model's parameters.
      objective_grads: with respect to `ObjectiveState.params`.
      history: `ObjectiveState.history` after the batch.
      metrics: further scalars to log.
      train_objective: bool scalar: whether `ObjectiveState.params` are updated; None for always.
      train_model: the same of the model's parameters.
    """

    loss: Array
    grads: Any
    objective_grads: Any
    history: Any
    metrics: Mapping[str, Array] = {}
    train_objective: Array | None = None
    train_model: Array | None = None


class Objective(Protocol):
    """A loss, possibly with parameters of its own.

    It may have a method project(params) -> params for these, as a network has (`models.network`).
    """

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The state of step 0."""
        ...

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The loss of a batch, and its gradients."""
        ...


class HeldOutObjective(Objective, Protocol):
    """An objective that is also measured on held-out examples."""

    def held_out(self, params: Any, inputs: LossInputs) -> Array:
        """(B,) losses of a network in evaluation mode."""
        ...
