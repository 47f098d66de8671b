"""`config.loss`: the training objective of a first stage."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.errors import UserError
from diffjax.experiment.autoencoder_networks import whole
from diffjax.experiment.backbones import DTYPES
from diffjax.experiment.spec import from_spec, from_table, is_path
from diffjax.latent.first_stage import FirstStage
from diffjax.models.discriminator import PatchDiscriminator
from diffjax.models.ops import XLA, Ops
from diffjax.perceptual import FeatureNetwork
from diffjax.training.autoencoder_objective import AutoencoderObjective, ReconstructionLoss
from diffjax.types import Array


def _patch(*, channels: int = 64, layers: int = 3) -> Callable[..., nn.Module]:
    return partial(PatchDiscriminator, whole("channels", channels, 1), whole("layers", layers, 0))


def _classifier(*, file: str = "") -> FeatureNetwork:
    from diffjax.perceptual.classifier import classifier

    return classifier(file)


def _efficientnet_lite0() -> FeatureNetwork:
    from diffjax.perceptual.efficientnet_lite0 import efficientnet_lite0

    return efficientnet_lite0()


def _vgg16(*, file: str = "") -> FeatureNetwork:
    from diffjax.perceptual.vgg16 import vgg16

    return vgg16(file)


def _lpips(*, vgg: str, heads: str = "") -> FeatureNetwork:
    from diffjax.perceptual.lpips import lpips

    return lpips(vgg, heads)


DIFFERENCES: Mapping[str, Callable[..., Any]] = {
    "l1": lambda: lambda x, y: jnp.abs(x - y).mean((1, 2, 3)),
    "l2": lambda: lambda x, y: jnp.square(x - y).mean((1, 2, 3)),
}
PERCEPTUAL: Mapping[str, Callable[..., FeatureNetwork | None]] = {
    "none": lambda: None,
    "classifier": _classifier,
    "efficientnet_lite0": _efficientnet_lite0,
    "vgg16": _vgg16,
    "lpips": _lpips,
}
DISCRIMINATORS: Mapping[str, Callable[..., Any]] = {"none": lambda: None, "patch": _patch}


def objective(config: Any, *, stage: FirstStage, ops: Ops = XLA) -> AutoencoderObjective:
    """The losses of `config.loss`; the discriminator computes in `config.autoencoder.dtype`.

    Raises:
      UserError: an unknown name, or a feature network that can't be read or does not accept the
        images.
    """
    c = config.loss
    network = from_spec(c.perceptual, PERCEPTUAL, key="loss.perceptual")
    if is_path(c.perceptual) and not isinstance(network, FeatureNetwork):
        raise UserError(
            f"config.loss.perceptual = {c.perceptual!r} is a {type(network).__name__}: expected a "
            "diffjax.perceptual.FeatureNetwork"
        )
    discriminator = adversary(config, ops=ops)
    images = jax.ShapeDtypeStruct((1, *stage.image_shape), jnp.float32)
    features = None
    if network is not None:
        features = partial(network.apply, network.params)
        _check(features, images, f"config.loss.perceptual = {c.perceptual!r}")
    if discriminator is not None:
        key = jax.random.key(0)
        _check(
            lambda x: discriminator.init(key, x), images,
            f"config.loss.adversarial = {c.adversarial!r}",
        )  # fmt: skip
    reconstruction_loss = ReconstructionLoss(
        difference=from_table(c.reconstruction, DIFFERENCES, key="loss.reconstruction"),
        perceptual_weight=c.perceptual_weight,
        features=features,
        feature_weights=network.weights if network else None,
    )
    return AutoencoderObjective(
        stage,
        reconstruction_loss,
        discriminator=discriminator,
        adversarial_weight=c.adversarial_weight,
        adversarial_start=c.adversarial_start,
    )


def adversary(config: Any, *, ops: Ops = XLA) -> nn.Module | None:
    """The discriminator of `config.loss`, or None.

    Raises:
      UserError: an unknown name.
    """
    make = from_table(config.loss.adversarial, DISCRIMINATORS, key="loss.adversarial")
    dtype = from_table(config.autoencoder.dtype, DTYPES, key="autoencoder.dtype")
    return make and make(dtype=dtype, ops=ops)


def _check(function: Callable[[Any], Array], images: Any, what: str) -> None:
    try:
        jax.eval_shape(function, images)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{what}: {str(error).splitlines()[0]}") from error
