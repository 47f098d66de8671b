"""A trained first stage as diffusers' AutoencoderKL: a folder's vae/, the inverse of `vae`."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.latent.first_stage import FirstStage, Scaling, StageParams
from diffjax.stable_diffusion import names, vae
from diffjax.stable_diffusion.weights_writer import convolutions, tensors_of, write, write_json

_MOST_GROUPS = 32


def layout(channels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of `Encoder`, and of `Decoder`, with which they are an AutoencoderKL.

    Args:
      channels: of the first level; the number of groups is the largest power of 2 up to 32 that
        divides it.
    """
    groups = math.gcd(channels, _MOST_GROUPS)
    common = {"groups": groups, "eps": vae.EPS, "projected": True}
    return {**common, "pad_end": True}, common


def scaling_factor(scaling: Scaling) -> float:
    """One over the standard deviation of all latents, from each channel's mean and deviation.

    As in Rombach et al. 2022, appendix G: the deviation is over all components, so that one number,
    without a shift, serves all channels.
    """
    mean, std = np.asarray(scaling.shift, np.float64), 1 / np.asarray(scaling.factor, np.float64)
    return float(1 / np.sqrt(np.mean(std**2 + mean**2) - np.mean(mean) ** 2))


def write_vae(folder: Path, stage: FirstStage, params: StageParams) -> list[Path]:
    """Writes config.json and diffusion_pytorch_model.safetensors, in float32.

    Args:
      folder: there already.
      stage: with the fields of `layout`, without patches, and a Gaussian's latents.
      params: its arrays.

    Returns:
      The written files.
    """
    encoder = stage.encoder
    levels = len(encoder.multipliers)
    config = {
        "_class_name": "AutoencoderKL",
        "in_channels": stage.image_shape[-1],
        "out_channels": stage.image_shape[-1],
        "latent_channels": stage.latent_shape[-1],
        "block_out_channels": [encoder.channels * multiple for multiple in encoder.multipliers],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": encoder.blocks,
        "norm_num_groups": encoder.groups,
        "act_fn": "silu",
        "sample_size": max(stage.image_shape[:2]),
        "scaling_factor": scaling_factor(params.scaling),
    }
    tensors = tensors_of(
        params.params,
        names.of_vae(levels),
        is_conv=convolutions(linear_projection=True),
        dtype=np.dtype(np.float32),
    )
    write(folder, vae.STEM, tensors)
    write_json(folder / "config.json", config)
    return sorted(folder.iterdir())
