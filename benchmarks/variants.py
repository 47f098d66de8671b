"""Other ways to run diffjax's train step, which are timed against the way it runs."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax.models import ops
from diffjax.models.ops import Ops
from diffjax.types import Array

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Variant(NamedTuple):
    """What differs from the train step as it is.

    Attributes:
      what: in words.
      config: dotted key -> value.
      environment: variable of the process -> text that is added to it.
      ops: operations of the network, None for its own.
      feed: one of `feeds.FEEDS`.
      donate: whether a step may write into its input's buffers, where the strategy donates them.
    """

    what: str
    config: Mapping[str, Any] = NOTHING
    environment: Mapping[str, str] = NOTHING
    ops: Ops | None = None
    feed: str = "batch"
    donate: bool = True


def norm_in_half(
    x: Array, scale: Array, shift: Array, *, groups: int, eps: float, silu: bool
) -> Array:
    """`ops.group_norm`, but with the image scaled and shifted in its own type.

    Mean and variance stay float32; no float32 copy of the image is made.
    """
    batch, channels = x.shape[0], x.shape[-1]
    space = tuple(range(1, x.ndim - 1))

    def group_mean(per_channel: Array) -> Array:
        grouped = per_channel.reshape(batch, groups, channels // groups)
        return jnp.repeat(grouped.mean(-1), channels // groups, axis=-1)

    mean = group_mean(x.mean(space, dtype=jnp.float32))
    squares = jnp.square(x.astype(jnp.float32)).mean(space)
    variance = group_mean(squares) - jnp.square(mean)
    multiplier = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + eps) * scale
    offset = shift - mean * multiplier
    shape = (batch,) + (1,) * len(space) + (channels,)
    y = x * multiplier.astype(x.dtype).reshape(shape) + offset.astype(x.dtype).reshape(shape)
    return jax.nn.silu(y) if silu else y


def norm_unfused(
    x: Array, scale: Array, shift: Array, *, groups: int, eps: float, silu: bool
) -> Array:
    """`ops.group_norm` behind barriers, so that XLA fuses it with no neighbour."""
    x = jax.lax.optimization_barrier(x)
    y = ops.group_norm(x, scale, shift, groups=groups, eps=eps, silu=silu)
    return jax.lax.optimization_barrier(y)


VARIANTS: Mapping[str, Variant] = {
    "": Variant("as it is"),
    "precise": Variant(
        "float32 products, no TF32", environment={"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    ),
    "cudnn": Variant("attention by cuDNN", {"model.attention": "softmax(implementation='cudnn')"}),
    "heads-64": Variant("heads of 64 channels", {"model.head_channels": 64}),
    "heads-64-cudnn": Variant(
        "heads of 64 channels, attention by cuDNN",
        {"model.attention": "softmax(implementation='cudnn')", "model.head_channels": 64},
    ),
    "triton-gemm": Variant(
        "every matrix product by Triton",
        environment={"XLA_FLAGS": "--xla_gpu_triton_gemm_any=true"},
    ),
    "half-norm": Variant(
        "normalisation in bfloat16, statistics in float32",
        ops=ops.XLA._replace(group_norm=norm_in_half),
    ),
    "unfused-norm": Variant(
        "normalisation fused with no neighbour", ops=ops.XLA._replace(group_norm=norm_unfused)
    ),
    "channels-88": Variant(
        "88 channels, a multiple of 8", {"model.channels": 88, "model.head_channels": 44}
    ),
    "channels-128": Variant("128 channels, a multiple of 64", {"model.channels": 128}),
    "unrolled": Variant("the loop over blocks unrolled", {"model.unroll": True}),
    "kept": Variant("the old state's buffers are not donated", donate=False),
    "scan-8": Variant("8 steps a dispatch, by scan", feed="scan"),
    "resident": Variant("the set on the device, indices from the host", feed="resident"),
}
