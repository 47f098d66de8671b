"""The same U-Net with flax's own layers: what a user of plain Flax has, the baseline of diffjax."""

import flax.linen as nn
import jax

from diffjax.models.ops import Ops
from diffjax.types import Array


def conv(
    x: Array, kernel: Array, bias: Array, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Array:
    """`nn.Conv`; see `diffjax.models.ops.Conv`."""
    layer = nn.Conv(
        kernel.shape[-1], kernel.shape[:2], strides=stride, padding=padding,
        feature_group_count=groups, dtype=x.dtype,
    )  # fmt: skip
    return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)


def dense(x: Array, kernel: Array, bias: Array) -> Array:
    """`nn.Dense`; see `diffjax.models.ops.Dense`."""
    layer = nn.Dense(kernel.shape[-1], dtype=x.dtype)
    return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)


def group_norm(
    x: Array, scale: Array, shift: Array, *, groups: int, eps: float, silu: bool
) -> Array:
    """`nn.GroupNorm`, then scale, shift and SiLU; see `diffjax.models.ops.GroupNorm`.

    Scale and shift come from the embedding where there is one, so they are not the layer's own.
    """
    layer = nn.GroupNorm(groups, epsilon=eps, use_bias=False, use_scale=False, dtype=x.dtype)
    spread = (len(x),) + (1,) * (x.ndim - 2) + (-1,)
    y = layer.apply({}, x) * scale.reshape(spread) + shift.reshape(spread)
    return (jax.nn.silu(y) if silu else y).astype(x.dtype)


OPS = Ops(conv, dense, group_norm)
