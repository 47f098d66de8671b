"""The backbones of `config.model`: the U-Net and the transformers of diffjax, from its fields."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from diffjax import denoisers
from diffjax.errors import UserError
from diffjax.experiment import process
from diffjax.experiment.spec import from_table
from diffjax.models import ConvNeXtBlock, ResNetBlock, UNet, linear_attention, remat
from diffjax.models.dit import DiT
from diffjax.models.dit_blocks import Gelu, LayerNorm, RMSNorm, SwiGlu
from diffjax.models.edm2 import EDM2UNet
from diffjax.models.embeddings import random_time_features, timestep_embedding
from diffjax.models.ops import Ops
from diffjax.models.prior import Prior
from diffjax.models.unet import RESAMPLINGS


def _convnext(expansion: int = 2) -> Callable[..., Any]:
    if expansion < 1:
        raise ValueError(f"expansion must be at least 1, not {expansion}")
    return partial(ConvNeXtBlock, expansion=expansion)


def _softmax(implementation: str = "auto") -> Callable[..., Any]:
    """`jax.nn.dot_product_attention`; "auto" leaves the choice to the kernels and JAX."""
    if implementation not in ("auto", "xla", "cudnn"):
        raise ValueError(f"implementation must be 'auto', 'xla' or 'cudnn', not {implementation!r}")
    if implementation == "auto":
        return jax.nn.dot_product_attention
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError(
            f"implementation='cudnn' needs an NVIDIA GPU, and this is a {jax.default_backend()}"
        )
    return partial(jax.nn.dot_product_attention, implementation=implementation)


def _random_time_features(scale: float = 0.016) -> Callable[..., Any]:
    if not scale > 0:
        raise ValueError(f"scale must be above 0, not {scale}")
    return partial(random_time_features, scale=scale)


BLOCKS: Mapping[str, Callable[..., Any]] = {
    "resnet": lambda: ResNetBlock,
    "convnext": _convnext,
}
ATTENTIONS: Mapping[str, Callable[..., Any]] = {
    "softmax": _softmax,
    "linear": lambda: linear_attention,
}
RESAMPLES: Mapping[str, Callable[..., Any]] = {name: partial(str, name) for name in RESAMPLINGS}
TIME_FEATURES: Mapping[str, Callable[..., Any]] = {
    "sinusoidal": lambda: timestep_embedding,
    "fourier": _random_time_features,
}
MLPS: Mapping[str, Callable[..., Any]] = {"swiglu": lambda: SwiGlu, "gelu": lambda: Gelu}
NORMS: Mapping[str, Callable[..., Any]] = {"rms": lambda: RMSNorm, "layer": lambda: LayerNorm}
DTYPES: Mapping[str, Callable[..., Any]] = {
    "float32": lambda: jnp.float32,
    "bfloat16": lambda: jnp.bfloat16,
}
REMATS: Mapping[str, Callable[..., Any]] = {
    "none": lambda: None,
    "dots": lambda: remat.dots,
    "layers": lambda: remat.layers,
    "full": lambda: remat.full,
}


def unet(config: Any, given: Mapping[str, Any]) -> UNet:
    """The U-Net of `config.model`; `given` follows from the data and the diffusion."""
    c = config.model
    return UNet(
        base_channels=c.channels,
        channel_multipliers=tuple(c.multipliers),
        num_res_blocks=c.blocks,
        attention_resolutions=tuple(c.attention_resolutions),
        transformer_depth=c.transformer_depth,
        head_channels=c.head_channels,
        dropout=c.dropout,
        fourier=tuple(c.fourier),
        patch=c.patch,
        block=from_table(c.block, BLOCKS, key="model.block"),
        scale_shift=c.scale_shift,
        resample=from_table(c.resample, RESAMPLES, key="model.resample"),
        resample_first=c.resample_first,
        scale_skips=c.scale_skips,
        time_features=from_table(c.time_features, TIME_FEATURES, key="model.time_features"),
        attention_fn=attention(config, given["ops"]),
        dtype=from_table(c.dtype, DTYPES, key="model.dtype"),
        remat=from_table(c.remat, REMATS, key="model.remat"),
        **{name: given[name] for name in given if name not in ("shape",)},
    )


def attention(config: Any, ops: Ops) -> Callable[..., Any]:
    """The attention of `config.model`; XLA's in cuDNN's place for a forward derivative, which
    cuDNN's has not."""
    text = config.model.attention
    found: Callable[..., Any] = from_table(text, ATTENTIONS, key="model.attention")
    if "cudnn" in text and process.takes_tangent(config):
        return _softmax("xla")
    return ops.attention if found is jax.nn.dot_product_attention else found


def dit(config: Any, given: Mapping[str, Any]) -> DiT:
    """The transformer of `config.model` over an image's patches; `given` as for `unet`.

    Raises:
      UserError: an output of levels.
    """
    c = config.model
    if given["num_pixel_levels"]:
        raise UserError(
            f"config.model.name = {c.name!r} predicts no levels: use a "
            "config.diffusion.parametrisation other than 'categorical'"
        )
    fields = ("num_pixel_levels", "shape")
    return DiT(
        width=c.width,
        depth=c.depth,
        head_channels=c.head_channels,
        patch=c.patch,
        mlp=from_table(c.mlp, MLPS, key="model.mlp"),
        norm=from_table(c.norm, NORMS, key="model.norm"),
        qk_norm=c.qk_norm,
        rotary=c.rotary,
        sincos=c.sincos,
        bottleneck=c.bottleneck,
        class_tokens=c.class_tokens,
        class_tokens_from=c.class_tokens_from,
        unroll=c.unroll,
        dropout=c.dropout,
        dropout_middle=c.dropout_middle,
        time_features=from_table(c.time_features, TIME_FEATURES, key="model.time_features"),
        attention_fn=attention(config, given["ops"]),
        dtype=from_table(c.dtype, DTYPES, key="model.dtype"),
        remat=from_table(c.remat, REMATS, key="model.remat"),
        **{name: given[name] for name in given if name not in fields},
    )


def edm2(config: Any, given: Mapping[str, Any]) -> EDM2UNet:
    """The magnitude-preserving U-Net of `config.model`; `given` as for `unet`.

    Raises:
      UserError: a condition or an output that it does not have.
    """
    c = config.model
    for name, key, value in (
        ("text_width", "condition.text", "'none'"),
        ("embedding_width", "condition.embedding", "'none'"),
        ("augmentation_width", "diffusion.augment", "'none'"),
        ("map_level", "condition.map", "one without noise=True"),
        ("spans", "diffusion.parametrisation", "one other than 'average_velocity'"),
        ("num_pixel_levels", "diffusion.parametrisation", "one other than 'categorical'"),
    ):
        if given[name]:
            raise UserError(
                f"config.model.name = {c.name!r} takes times, classes and maps alone, and predicts "
                f"no levels: set config.{key} to {value}"
            )
    kept = ("num_classes", "map_channels", "out_channels", "ops")
    return EDM2UNet(
        base_channels=c.channels,
        channel_multipliers=tuple(c.multipliers),
        num_res_blocks=c.blocks,
        attention_resolutions=tuple(c.attention_resolutions),
        head_channels=c.head_channels,
        patch=c.patch,
        bandwidth=c.bandwidth or _bandwidth(config),
        dropout=c.dropout,
        residual_balance=c.residual_balance,
        attention_balance=c.attention_balance,
        concat_balance=c.concat_balance,
        label_balance=c.label_balance,
        attention_fn=attention(config, given["ops"]),
        dtype=from_table(c.dtype, DTYPES, key="model.dtype"),
        remat=from_table(c.remat, REMATS, key="model.remat"),
        **{name: given[name] for name in kept},
    )


def _bandwidth(config: Any) -> float:
    """EDM2's, 1 for log(sigma) / 4, whose range is about 3; for others as many cycles over all
    times."""
    time_input = process.diffusion(config).time_input
    if time_input is denoisers.quarter_log_sigma:
        return 1.0
    return 3.0 if time_input is denoisers.unit_time else 0.003


def prior(config: Any, given: Mapping[str, Any]) -> Prior:
    """The transformer of `config.model` over texts and embeddings; `given` as for `unet`.

    Raises:
      UserError: a condition that it does not take.
    """
    c = config.model
    for name, key in (
        ("map_channels", "condition.map"), ("augmentation_width", "diffusion.augment"),
        ("embedding_width", "condition.embedding"),
    ):  # fmt: skip
        if given[name]:
            raise UserError(
                f"config.model.name = {c.name!r} takes texts and classes alone: set config.{key} "
                "to 'none'"
            )
    if given["spans"]:
        raise UserError(
            f"config.model.name = {c.name!r} takes no span of a step: use a "
            "config.diffusion.parametrisation other than 'average_velocity'"
        )
    return Prior(
        width=c.width,
        layers=c.layers,
        head_channels=c.head_channels,
        dropout=c.dropout,
        dtype=from_table(c.dtype, DTYPES, key="model.dtype"),
        remat=from_table(c.remat, REMATS, key="model.remat"),
        **{k: given[k] for k in ("num_classes", "text_width", "text_encoder", "out_channels")},
    )


# Each with the number of axes of its data, and what they are.
NETWORKS: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "unet": unet,
    "dit": dit,
    "edm2": edm2,
    "prior": prior,
}
AXES = {
    "unet": (3, "(H, W, C)"),
    "dit": (3, "(H, W, C)"),
    "edm2": (3, "(H, W, C)"),
    "prior": (1, "(D,)"),
}
