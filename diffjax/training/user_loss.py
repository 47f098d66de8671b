"""A user's own loss as an objective.

    def huber(network, prediction, *, delta=0.1):
        def loss(params, x_0, cond, key):
            ...
            output = network.apply(params, x, t, cond, train=True, key=key)
            return ...                                   # (B,), or a scalar
        return loss

or an object with `loss(params, x_0, cond, key, state) -> (loss, state)` and `init(key) -> state`
for a state of its own, which is carried from step to step and kept in checkpoints. Such a loss
takes whole batches: config.train.accumulate must be 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.models.network import Network
from diffjax.training.objective import LossAndGrads, LossInputs, ObjectiveState
from diffjax.types import Array


class InEvaluation(NamedTuple):
    """A network that ignores `train` and `key`: always in evaluation mode, without dropout."""

    network: Network

    def init(self, key: Array, x: Array, t: Array, cond: Any) -> Any:
        """The network's."""
        return self.network.init(key, x, t, cond)

    def apply(
        self, params: Any, x: Array, t: Array, cond: Any, *, train: bool = False, key: Any = None
    ) -> Array:
        """The network's, with train=False."""
        del train, key
        return self.network.apply(params, x, t, cond)


class UserLoss(NamedTuple):
    """The objective of a user's loss; see `objective.Objective`.

    Attributes:
      training: the loss of the network in training mode.
      evaluating: the same of the network `InEvaluation`.
    """

    training: Any
    evaluating: Any

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The user's state as history; there are no further parameters."""
        return self._init(jax.random.fold_in(key, 1))

    def _init(self, key: Array) -> ObjectiveState:
        make = getattr(self.training, "init", None)
        return ObjectiveState({}, None if make is None else make(key))

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The mean loss of the batch."""
        # The first example's index differs among micro-batches.
        key = jax.random.fold_in(inputs.key("loss"), inputs.indices[0])

        def loss_fn(params: Any) -> tuple[Array, Any]:
            each, new = _call(self.training, params, inputs.x_0, inputs.cond, key, state.history)
            return each.mean(), new

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return LossAndGrads(loss, grads, {}, new)

    def held_out(self, params: Any, inputs: LossInputs) -> Array:
        """The loss, with the state of step 0."""
        state = self._init(inputs.key("init")).history
        each, _ = _call(self.evaluating, params, inputs.x_0, inputs.cond, inputs.key("loss"), state)
        return each


def _call(
    loss_or_object: Any, params: Any, x_0: Array, cond: Any, key: Array, state: Any
) -> tuple[Array, Any]:
    loss: Callable[..., Any] = getattr(loss_or_object, "loss", loss_or_object)
    if not hasattr(loss_or_object, "init"):
        return jnp.asarray(loss(params, x_0, cond, key)), None
    each, state = loss(params, x_0, cond, key, state)
    return jnp.asarray(each), state
