"""The denoising objective with representation alignment (REPA; see `losses.alignment`)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.losses.alignment import alignment_loss
from diffjax.models.projector import Projector
from diffjax.training.denoising_objective import DenoisingObjective
from diffjax.training.objective import LossAndGrads, LossInputs, ObjectiveState
from diffjax.types import Array


class AlignedObjective(NamedTuple):
    """The denoising loss, and `weight` times the alignment of one of the network's blocks.

    Attributes:
      denoising: the loss without alignment. Its network has `apply_with_block`; it is evaluated
        once, without self-conditioning.
      features: x_0 (B, H, W, C) -> (B, h, w, D) of a frozen network.
      block: name of the block.
      channels: of the block.
      projector: from the block's channels to D.
      weight: of the alignment.
    """

    denoising: DenoisingObjective
    features: Callable[[Array], Array]
    block: str
    channels: int
    projector: Projector
    weight: float

    def init(self, key: Array, params: Any) -> ObjectiveState:
        """The projector's parameters next to those of the denoising objective."""
        own = self.denoising.init(key, params)
        tokens = jnp.zeros((1, 1, 1, self.channels))
        projector = self.projector.init(jax.random.fold_in(key, 2), tokens)["params"]
        return own._replace(params={"denoising": own.params, "projector": projector})

    def loss_and_grads(
        self, params: Any, state: ObjectiveState, inputs: LossInputs
    ) -> LossAndGrads:
        """The denoising loss, the gradients of the sum, and the alignment as a metric."""
        draws = self.denoising.draw(state, inputs)
        features = self.features(inputs.x_0)
        dropout_key = jax.random.fold_in(inputs.key("dropout"), inputs.indices[0])
        network: Any = self.denoising.network

        def loss_fn(params: Any, own: Any) -> tuple[Array, tuple[Array, Array]]:
            blocks = []

            def apply(x: Array, t: Array, cond: Any) -> Array:
                output, block = network.apply_with_block(
                    params, x, t, cond, block=self.block, train=True, key=dropout_key
                )
                blocks.append(block)
                return output

            weighted, each = self.denoising.losses(apply, own["denoising"], inputs, draws)
            (block,) = blocks
            projected = self.projector.apply({"params": own["projector"]}, block)
            alignment = alignment_loss(projected, features).mean()
            return weighted.mean() + self.weight * alignment, (each, alignment)

        (_, (each, alignment)), (grads, own_grads) = jax.value_and_grad(
            loss_fn, argnums=(0, 1), has_aux=True
        )(params, state.params)
        return LossAndGrads(
            (draws.importance * each).mean(),
            grads,
            own_grads,
            self.denoising.history(state, draws, each),
            {"alignment": alignment},
        )

    def held_out(self, params: Any, inputs: LossInputs) -> Array:
        """(B,) denoising losses, without alignment."""
        return self.denoising.held_out(params, inputs)
