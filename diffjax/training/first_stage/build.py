"""The strings of a first stage's config as functions; see `training.choices`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffjax.errors import UserError
from diffjax.models.autoencoder import Decoder, Encoder
from diffjax.models.discriminator import PatchDiscriminator
from diffjax.models.ops import XLA, Ops
from diffjax.perceptual import Network
from diffjax.schedules import Array
from diffjax.training.build import DTYPES
from diffjax.training.choices import choose
from diffjax.training.first_stage.regularisers import Kl, Vq
from diffjax.training.first_stage.stage import FirstStage
from diffjax.training.first_stage.state import Objective


def _number(name: str, value: Any, *, below: float = float("inf")) -> float:
    if type(value) not in (int, float) or not 0 <= value < below:
        limit = "" if below == float("inf") else f" and < {below:g}"
        raise ValueError(f"{name} must be a number >= 0{limit}, not {value!r}")
    return float(value)


def _whole(name: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, not {value!r}")
    return value


def _kl(*, weight: float = 1e-6) -> Kl:
    return Kl(_number("weight", weight))


def _vq(*, size: int = 512, weight: float = 0.25, decay: float = 0.99) -> Vq:
    return Vq(_whole("size", size, 2), _number("weight", weight), _number("decay", decay, below=1))


def _patch(*, channels: int = 64, layers: int = 3) -> Callable[..., nn.Module]:
    return partial(PatchDiscriminator, _whole("channels", channels, 1), _whole("layers", layers, 0))


def _classifier(*, file: str = "") -> Network:
    from diffjax.perceptual.classifier import classifier

    return classifier(file)


def _efficientnet_lite0() -> Network:
    from diffjax.perceptual.efficientnet_lite0 import efficientnet_lite0

    return efficientnet_lite0()


def _vgg16(*, file: str = "") -> Network:
    from diffjax.perceptual.vgg16 import vgg16

    return vgg16(file)


def _lpips(*, vgg: str, heads: str = "") -> Network:
    from diffjax.perceptual.lpips import lpips

    return lpips(vgg, heads)


REGULARISERS: Mapping[str, Callable[..., Any]] = {"kl": _kl, "vq": _vq}
DIFFERENCES: Mapping[str, Callable[..., Any]] = {
    "l1": lambda: lambda x, y: jnp.abs(x - y).mean((1, 2, 3)),
    "l2": lambda: lambda x, y: jnp.square(x - y).mean((1, 2, 3)),
}
PERCEPTUAL: Mapping[str, Callable[..., Network | None]] = {
    "none": lambda: None,
    "classifier": _classifier,
    "efficientnet_lite0": _efficientnet_lite0,
    "vgg16": _vgg16,
    "lpips": _lpips,
}
DISCRIMINATORS: Mapping[str, Callable[..., Any]] = {"none": lambda: None, "patch": _patch}


def stage(
    config: Any, *, image_shape: tuple[int, int, int], ops: Ops = XLA, tile: int = 0
) -> FirstStage:
    """The networks of `config.autoencoder` for images of a shape.

    Raises:
      UserError: an unknown name, or fields that don't fit each other or the images.
    """
    c = config.autoencoder
    regulariser = choose(c.regulariser, REGULARISERS, key="autoencoder.regulariser")
    common: dict[str, Any] = {
        "channels": c.channels,
        "multipliers": tuple(c.multipliers),
        "blocks": c.blocks,
        "patch": c.patch,
        "dtype": choose(c.dtype, DTYPES, key="autoencoder.dtype"),
        "ops": ops,
    }
    encoder = Encoder(regulariser.map_channels(c.latent_channels), **common)
    decoder = Decoder(image_shape[-1], **common)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        latents_map, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"config.autoencoder: {str(error).splitlines()[0]}") from error
    latent_shape = (*latents_map.shape[1:3], c.latent_channels)
    return FirstStage(encoder, decoder, regulariser, image_shape, latent_shape, tile)


def objective(config: Any, *, image_shape: tuple[int, int, int], ops: Ops = XLA) -> Objective:
    """The losses of `config.loss`, its discriminator of `config.autoencoder`'s type.

    Raises:
      UserError: an unknown name, a network of features that can't be read, or one that can't take
        the images.
    """
    c = config.loss
    network = choose(c.perceptual, PERCEPTUAL, key="loss.perceptual")
    discriminator = adversary(config, ops=ops)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
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
    return Objective(
        difference=choose(c.reconstruction, DIFFERENCES, key="loss.reconstruction"),
        perceptual_weight=c.perceptual_weight,
        features=features,
        feature_weights=network.weights if network else None,
        discriminator=discriminator,
        adversarial_weight=c.adversarial_weight,
        adversarial_start=c.adversarial_start,
    )


def adversary(config: Any, *, ops: Ops = XLA) -> nn.Module | None:
    """The discriminator of `config.loss`, or None.

    Raises:
      UserError: an unknown name.
    """
    make = choose(config.loss.adversarial, DISCRIMINATORS, key="loss.adversarial")
    dtype = choose(config.autoencoder.dtype, DTYPES, key="autoencoder.dtype")
    return make and make(dtype=dtype, ops=ops)


def _check(function: Callable[[Any], Array], images: Any, what: str) -> None:
    try:
        jax.eval_shape(function, images)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{what}: {str(error).splitlines()[0]}") from error
