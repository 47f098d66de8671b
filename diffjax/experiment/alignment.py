"""`config.diffusion.objective = "aligned(...)"`: representation alignment."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.errors import UserError
from diffjax.experiment.autoencoder_objective import PERCEPTUAL
from diffjax.experiment.spec import from_spec
from diffjax.models.projector import Projector
from diffjax.training.aligned_objective import AlignedObjective
from diffjax.training.denoising_objective import DenoisingObjective
from diffjax.types import Array


def aligned(
    features: str = "efficientnet_lite0",
    layer: int = -1,
    side: int = 0,
    block: str = "block_3",
    weight: float = 0.5,
    hidden: int = 0,
) -> Callable[[Any, DenoisingObjective, tuple[int, ...]], DenoisingObjective | AlignedObjective]:
    """The squared error, and the alignment of a block with a network's features.

    Args:
      features: the network, a choice of config.loss.perceptual.
      layer: which of its maps.
      side: the images' smaller side is brought to this before they are shown to it; 0: as they are.
      block: name of the block that is aligned.
      weight: of the alignment.
      hidden: channels of the projector's hidden layers; 0 for twice the block's.

    Returns:
      (config, squared error, shape of one x_0) -> the objective.

    Raises:
      ValueError: a value out of range, or features = "none".
    """
    if not weight > 0 or side < 0 or hidden < 0:
        raise ValueError(
            f"weight must be above 0, side and hidden at least 0, not {weight}, {side} and {hidden}"
        )
    of_images = _of_images(features, layer, side)

    def make(
        config: Any, chosen: DenoisingObjective, shape: tuple[int, ...]
    ) -> DenoisingObjective | AlignedObjective:
        c = config.diffusion
        what = f"config.diffusion.objective = {c.objective!r}"
        if chosen.self_conditioning:
            raise UserError(
                f"{what} is incompatible with config.diffusion.self_conditioning = "
                f"{c.self_conditioning}: set it to 0"
            )
        if config.first_stage.workdir:
            raise UserError(
                f"{what} compares with features of images, and config.first_stage.workdir = "
                f"{config.first_stage.workdir!r} makes x_0 latents: use a model of pixels"
            )
        if chosen.network is None:  # only the names are checked
            return chosen
        if not hasattr(chosen.network, "apply_with_block"):
            raise UserError(
                f"{what} reads a block of the network, which config.model.name = "
                f"{config.model.name!r} has not: use 'dit', 'unet' or a Linen module"
            )
        images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        try:
            channels = _channels(chosen, block, shape)
            found = jax.eval_shape(of_images, images)
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise UserError(f"{what}: {str(error).splitlines()[0]}") from error
        projector = Projector(hidden or 2 * channels, found.shape[-1])
        return AlignedObjective(chosen, of_images, block, channels, projector, weight)

    return make


def _of_images(features: str, layer: int, side: int) -> Callable[[Array], Array]:
    network = from_spec(features, PERCEPTUAL, key="diffusion.objective: features")
    if network is None:
        raise ValueError("features = 'none': use objective = 'squared_error'")

    def of_images(x: Array) -> Array:
        if side:
            times = side / min(x.shape[1:3])
            size = [round(times * length) for length in x.shape[1:3]]
            x = jax.image.resize(x, (len(x), *size, x.shape[-1]), "bilinear")
        maps = network.apply(network.params, x)
        if not -len(maps) <= layer < len(maps):
            raise ValueError(f"layer = {layer}: {network.name} has {len(maps)} maps")
        return maps[layer]

    return of_images


def _channels(chosen: DenoisingObjective, block: str, shape: tuple[int, ...]) -> int:
    """The channels of a block, which must have a map of (B, h, w, channels)."""
    prediction, network = chosen.prediction, chosen.network
    x = jnp.zeros((1, *prediction.input_shape(shape)))
    t = jnp.zeros(prediction.time_shape(1))

    def of_block(key: Array) -> Array:
        params = network.init(key, x, t, None)
        return network.apply_with_block(params, x, t, None, block=block)[1]  # type: ignore[attr-defined]

    found = jax.eval_shape(of_block, jax.random.key(0))
    if len(getattr(found, "shape", ())) != 4:
        raise ValueError(f"block {block!r} has no map")
    return found.shape[-1]
