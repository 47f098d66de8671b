"""The objective of an autoregressive model: its exact negative log likelihood in bits per dim."""

from typing import Any, NamedTuple

import jax

from diffjax.likelihood.logistic_mixture import image_bits_per_dim
from diffjax.models.pixelcnn import PixelCNN
from diffjax.training.objective import LossAndGrads, LossInputs, ObjectiveState
from diffjax.types import Array


class LikelihoodObjective(NamedTuple):
    """-log2 p(x) / (H W C) of images of 256 levels; see `likelihood.logistic_mixture`.

    Attributes:
      network: the network trained.
    """

    network: PixelCNN

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """Nothing besides the network's parameters."""
        return ObjectiveState({}, None)

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The mean over the batch, with dropout."""
        dropout = jax.random.fold_in(inputs.key("dropout"), inputs.indices[0])

        def loss(params: Any) -> Array:
            outputs = self.network.apply(
                {"params": params}, inputs.x_0, _label(inputs), True, rngs={"dropout": dropout}
            )
            return image_bits_per_dim(outputs, inputs.x_0).mean()

        found, grads = jax.value_and_grad(loss)(params)
        return LossAndGrads(found, grads, {}, state.history)

    def held_out(self, params: Any, inputs: LossInputs) -> Array:
        """(B,) without dropout."""
        outputs = self.network.apply({"params": params}, inputs.x_0, _label(inputs))
        return image_bits_per_dim(outputs, inputs.x_0)


def _label(inputs: LossInputs) -> Array | None:
    return None if inputs.cond is None else inputs.cond.label
