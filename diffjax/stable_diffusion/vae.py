"""The autoencoder of a folder, as a first stage."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.latent.first_stage import FirstStage, Scaling, StageParams
from diffjax.latent.regularisers import Kl
from diffjax.models.autoencoder import Decoder, Encoder
from diffjax.stable_diffusion import names, weights
from diffjax.stable_diffusion.fields import Fields
from diffjax.types import Dtype

STEM = "diffusion_pytorch_model"
# Of the normalisations; no field of the config.
EPS = 1e-6


def read(
    folder: Path, *, dtype: Dtype = jnp.float32, size: tuple[int, int], tile: int = 0
) -> tuple[FirstStage, Scaling]:
    """The autoencoder of a folder's config.json, and the scaling of its latents.

    A network whose config has force_upcast computes in float32 where it would in float16, in which
    its activations overflow (SDXL).

    Args:
      folder: with config.json.
      dtype: compute type.
      size: height and width of the latents.
      tile: side in latents of the tiles of tiled encoding and decoding; 0 for whole images.

    Raises:
      UserError: no such file, or a field that is not supported.
    """
    fields = Fields(folder / "config.json")
    fields.only("_class_name", "AutoencoderKL")
    channels = fields.wholes("block_out_channels", (64,))
    if any(width % channels[0] for width in channels):
        fields.refuse("block_out_channels", "multiples of the first")
    levels = len(channels)
    for name, kind in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        if fields.texts(name, [kind] * levels) != (kind,) * levels:
            fields.refuse(name, f"{levels} of {kind}")
    fields.only("act_fn", "silu", "swish")
    fields.only("mid_block_add_attention", True)
    fields.only("latents_mean", None)
    fields.only("latents_std", None)
    fields.skip("sample_size")
    groups = fields.whole("norm_num_groups", 32)
    if any(width % groups for width in channels):
        fields.refuse("norm_num_groups", f"a divisor of {channels}")
    if fields.flag("force_upcast", True) and jnp.dtype(dtype) == jnp.float16:
        dtype = jnp.float32
    inside, outside = fields.whole("in_channels", 3), fields.whole("out_channels", 3)
    if inside != outside:
        fields.refuse("out_channels", f"in_channels, {inside}")
    latent_channels = fields.whole("latent_channels", 4)
    common: dict[str, Any] = {
        "channels": channels[0],
        "multipliers": tuple(width // channels[0] for width in channels),
        "blocks": fields.whole("layers_per_block", 1),
        "groups": groups,
        "eps": EPS,
        "dtype": dtype,
    }
    stage = FirstStage(
        encoder=Encoder(
            2 * latent_channels, pad_end=True, projected=fields.flag("use_quant_conv", True),
            **common,
        ),
        decoder=Decoder(outside, projected=fields.flag("use_post_quant_conv", True), **common),
        regulariser=Kl(),
        image_shape=(size[0] * 2 ** (levels - 1), size[1] * 2 ** (levels - 1), outside),
        latent_shape=(*size, latent_channels),
        tile=tile,
        encode_tile=tile,
    )  # fmt: skip
    factor = fields.number("scaling_factor", 0.18215, above=0)
    shift = fields.value("shift_factor")
    shift = 0.0 if shift is None else fields.number("shift_factor", 0.0)
    fields.finish()
    each = (latent_channels,)
    return stage, Scaling(jnp.full(each, shift), jnp.full(each, factor))


def shapes(stage: FirstStage) -> Any:
    """The parameters {"encoder": ..., "decoder": ...} with jax.ShapeDtypeStruct for arrays."""
    side, key = stage.factor, jax.random.key(0)
    images = jax.ShapeDtypeStruct((1, side, side, stage.image_shape[-1]), jnp.float32)
    latents = jax.ShapeDtypeStruct((1, 1, 1, stage.latent_shape[-1]), jnp.float32)
    return {
        "encoder": jax.eval_shape(stage.encoder.init, key, images)["params"],
        "decoder": jax.eval_shape(stage.decoder.init, key, latents)["params"],
    }


def load(
    stage: FirstStage,
    scaling: Scaling,
    folder: Path,
    *,
    variant: str | None = None,
    shardings: Any = None,
) -> StageParams:
    """The parameters of a folder's files, in the stage's compute type; see `weights.load`."""
    params = weights.load(
        shapes(stage),
        weights.find(folder, STEM, variant=variant),
        names.of_vae(len(stage.encoder.multipliers)),
        folder=folder,
        dtype=stage.encoder.dtype,
        shardings=shardings,
    )
    return StageParams(params, (), scaling)
