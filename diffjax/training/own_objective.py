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
from diffjax.training.objective import Apply, Draws, Found, Keys, Learned
from diffjax.types import Array


class Evaluated(NamedTuple):
    """A network that is not trained, whatever its caller says: no dropout, no key."""

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


class OwnObjective(NamedTuple):
    """See `objective.Objective`.

    Attributes:
      training: the user's loss of the network that is trained.
      evaluating: the same of the `Evaluated` network.
    """

    training: Any
    evaluating: Any

    def init(self, key: Array) -> Learned:
        """The user's state as the history; nothing is trained by gradients but the network."""
        make = getattr(self.training, "init", None)
        return Learned({}, None if make is None else make(key))

    def gradients(self, apply: Apply, params: Any, learned: Learned, draws: Draws) -> Found:
        """The mean loss; the state is the mean over devices."""
        del apply
        # Of all devices' and micro-batches' first examples no two have one place.
        key = jax.random.fold_in(draws.key("loss"), draws.indices[0])

        def loss_fn(params: Any) -> tuple[Array, Any]:
            each, state = _call(self.training, params, draws.x_0, draws.cond, key, learned.history)
            return each.mean(), state

        (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        axis_name = draws.axis_name
        if axis_name is not None and state is not None:
            state = jax.tree.map(lambda x: _mean(x, axis_name), state)
        return Found(loss, grads, {}, state)

    def held_out(
        self, apply: Apply, params: Any, x_0: Array, *, cond: Any, key: Keys, indices: Array
    ) -> Array:
        """The loss, by a state as at step 0."""
        del apply, indices
        state = self.init(key("init")).history
        each, _ = _call(self.evaluating, params, x_0, cond, key("loss"), state)
        return each


def _mean(x: Array, axis_name: str) -> Array:
    """Over devices; of numbers that have no mean, such as a count, each device's own."""
    return jax.lax.pmean(x, axis_name) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def _call(
    own: Any, params: Any, x_0: Array, cond: Any, key: Array, state: Any
) -> tuple[Array, Any]:
    loss: Callable[..., Any] = getattr(own, "loss", own)
    if not hasattr(own, "init"):
        return jnp.asarray(loss(params, x_0, cond, key)), None
    each, state = loss(params, x_0, cond, key, state)
    return jnp.asarray(each), state
