"""An objective whose network is trained through adapters of frozen parameters, or other small
parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffjax.models.network import Network, Pair
from diffjax.training.objective import (
    HeldOutObjective,
    LossAndGrads,
    LossInputs,
    ObjectiveState,
)
from diffjax.types import Array


class AdaptedObjective(NamedTuple):
    """The loss of a network with adapters; the model's parameters are those of the adapters alone.

    The frozen parameters are `ObjectiveState.frozen`: arguments of the train step, and in no
    checkpoint.

    Attributes:
      of_network: network -> objective.
      network: of the frozen parameters.
      adapted: (network, frozen parameters, adapters, *arguments of `Network.apply`) -> the output.
    """

    of_network: Callable[[Network], HeldOutObjective]
    network: Network
    adapted: Callable[..., Array]

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The objective's own state, without the frozen parameters."""
        return self.of_network(self.network).init(key, params)

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The loss of a batch, and the gradients with respect to the adapters."""

        def apply(adapters: Any, *args: Any, **options: Any) -> Array:
            return self.adapted(self.network, state.frozen, adapters, *args, **options)

        objective = self.of_network(Pair(self.network.init, apply))
        return objective.loss_and_grads(params, state._replace(frozen=None), inputs)

    def held_out(self, params: Any, inputs: LossInputs) -> Array:
        """(B,) losses of the network with merged parameters."""
        return self.of_network(self.network).held_out(params, inputs)
