"""`config.autoencoder`: the networks of a first stage."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.errors import UserError
from diffjax.experiment.backbones import DTYPES
from diffjax.experiment.spec import from_table
from diffjax.latent.first_stage import FirstStage
from diffjax.latent.regularisers import Kl, Vq
from diffjax.models.autoencoder import Decoder, Encoder
from diffjax.models.ops import XLA, Ops
from diffjax.stable_diffusion import vae_writer


def number(name: str, value: Any, *, below: float = float("inf")) -> float:
    """Returns the value.

    Raises:
      ValueError: it is not a number in [0, below).
    """
    if type(value) not in (int, float) or not 0 <= value < below:
        limit = "" if below == float("inf") else f" and < {below:g}"
        raise ValueError(f"{name} must be a number >= 0{limit}, not {value!r}")
    return float(value)


def whole(name: str, value: Any, least: int) -> int:
    """Returns the value.

    Raises:
      ValueError: it is not a whole number >= `least`.
    """
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, not {value!r}")
    return value


def _kl(*, weight: float = 1e-6) -> Kl:
    return Kl(number("weight", weight))


def _vq(*, size: int = 512, weight: float = 0.25, decay: float = 0.99) -> Vq:
    return Vq(whole("size", size, 2), number("weight", weight), number("decay", decay, below=1))


REGULARISERS: Mapping[str, Callable[..., Any]] = {"kl": _kl, "vq": _vq}
# name -> () -> whether the networks are those of diffusers' AutoencoderKL.
LAYOUTS: Mapping[str, Callable[[], bool]] = {"diffjax": lambda: False, "diffusers": lambda: True}


def stage(
    config: Any, *, image_shape: tuple[int, int, int], ops: Ops = XLA, tile: int = 0
) -> FirstStage:
    """The networks of `config.autoencoder` for images of `image_shape`.

    Raises:
      UserError: an unknown name, or fields that don't fit each other or the images.
    """
    c = config.autoencoder
    regulariser = from_table(c.regulariser, REGULARISERS, key="autoencoder.regulariser")
    common: dict[str, Any] = {
        "channels": c.channels,
        "multipliers": tuple(c.multipliers),
        "blocks": c.blocks,
        "patch": c.patch,
        "dtype": from_table(c.dtype, DTYPES, key="autoencoder.dtype"),
        "ops": ops,
        "mix": ops.attention,
    }
    encoding, decoding = _layout(c, regulariser)
    encoder = Encoder(regulariser.map_channels(c.latent_channels), **common, **encoding)
    decoder = Decoder(image_shape[-1], **common, **decoding)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        latents_map, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"config.autoencoder: {str(error).splitlines()[0]}") from error
    latent_shape = (*latents_map.shape[1:3], c.latent_channels)
    return FirstStage(encoder, decoder, regulariser, image_shape, latent_shape, tile)


def _layout(c: Any, regulariser: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Further fields of the encoder and of the decoder."""
    if not from_table(c.layout, LAYOUTS, key="autoencoder.layout"):
        return {}, {}
    if c.patch != 1 or not isinstance(regulariser, Kl):
        raise UserError(
            f"config.autoencoder.layout = 'diffusers' with patch = {c.patch} and regulariser = "
            f"{c.regulariser!r}: AutoencoderKL has neither patches nor a codebook: set "
            "config.autoencoder.patch=1 and regulariser='kl(weight=1e-6)'"
        )
    return vae_writer.layout(c.channels)
