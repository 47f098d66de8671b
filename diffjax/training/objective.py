"""The interface between the train step and what a model is trained on.

The train step hands an objective one batch and takes the loss and all gradients from it. What an
objective learns or keeps besides the model's parameters (a schedule, a weighting, past losses, a
discriminator) is its `ObjectiveState`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from diffjax.types import Array

# Name of a random stream -> its key at this step.
Keys = Callable[[str], Array]


class ObjectiveState(NamedTuple):
    """What an objective has besides the model's parameters; {} and None where it has nothing.

    Attributes:
      params: trained by gradients.
      history: all else that it keeps from step to step, such as past losses at each time.
    """

    params: Any
    history: Any


class LossInputs(NamedTuple):
    """A batch, or a micro-batch of it, and what randomness follows from.

    Attributes:
      x_0: (B, ...) data.
      cond: the condition, or None.
      key: keys of the step's random streams by name.
      indices: (B,) positions of the examples in the whole batch.
      batch_size: of the whole batch.
      step: int32 scalar: updates made before this one.
    """

    x_0: Array
    cond: Any
    key: Keys
    indices: Array
    batch_size: int
    step: Array


class LossAndGrads(NamedTuple):
    """What an update is computed from.

    Attributes:
      loss: scalar, the mean over the batch.
      grads: with respect to the model's parameters.
      objective_grads: with respect to `ObjectiveState.params`.
      history: `ObjectiveState.history` after the batch.
      metrics: scalars to log beside the loss.
      train_objective: bool scalar: whether `ObjectiveState.params` are updated; None for always.
    """

    loss: Array
    grads: Any
    objective_grads: Any
    history: Any
    metrics: Mapping[str, Array] = {}
    train_objective: Array | None = None


class Objective(Protocol):
    """A loss, with all that it learns."""

    def init(self, key: Array) -> ObjectiveState:
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
