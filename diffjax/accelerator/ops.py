"""`models.Ops` from the native library: XLA custom calls with their gradients."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.models.ops import XLA, Ops
from diffjax.types import Array

# One call per element of the mapped axis, which handles any mix of mapped and shared operands.
VMAP = "sequential"


def _call(target: str, results: Any, *operands: Array, **attributes: Any) -> Any:
    return jax.ffi.ffi_call(f"diffjax_{target}", results, vmap_method=VMAP)(*operands, **attributes)


def _like(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _conv(x: Array, kernel: Array, bias: Array, stride: int, padding: int, groups: int) -> Array:
    batch, height, width, _ = x.shape
    rows, columns, _, features = kernel.shape
    shape = (
        batch,
        (height + 2 * padding - rows) // stride + 1,
        (width + 2 * padding - columns) // stride + 1,
        features,
    )
    return _call(
        "convolution_forward", _like(shape, x.dtype), x, kernel, bias,
        **_attributes(stride, padding, groups),
    )  # fmt: skip


def _attributes(stride: int, padding: int, groups: int) -> dict[str, Any]:
    return {
        "stride": np.int64(stride),
        "padding": np.full(4, padding, np.int64),
        "groups": np.int64(groups),
    }


def _conv_forward(
    x: Array, kernel: Array, bias: Array, stride: int, padding: int, groups: int
) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, bias, stride, padding, groups), (x, kernel)


def _conv_backward(
    stride: int, padding: int, groups: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array, Array]:
    x, kernel = saved
    attributes = _attributes(stride, padding, groups)
    dx = _call("convolution_input_gradient", _like(x.shape, x.dtype), dy, kernel, **attributes)
    dkernel, dbias = _call(
        "convolution_kernel_gradient",
        (_like(kernel.shape, jnp.float32), _like(kernel.shape[-1:], jnp.float32)),
        x, dy, **attributes,
    )  # fmt: skip
    return dx, dkernel, dbias


_conv.defvjp(_conv_forward, _conv_backward)


def conv(
    x: Array, kernel: Array, bias: Array, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Array:
    """`models.ops.Conv` with oneDNN.

    On processors with AMX, for a bfloat16 x the kernel is rounded to bfloat16; on others x is
    converted to float32. Sums are float32 in both cases.

    Differentiable once, in reverse mode.

    Raises:
      ValueError: x is neither float32 nor bfloat16, or the shapes are inconsistent.
    """
    _check_dtype(x)
    if x.ndim != 4 or kernel.ndim != 4 or bias.shape != kernel.shape[3:]:
        raise ValueError(
            f"got x {x.shape}, kernel {kernel.shape}, bias {bias.shape}: expected (B, H, W, C), "
            "(h, w, C / groups, F), (F,)"
        )
    if x.shape[-1] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"got x {x.shape} and kernel {kernel.shape} for {groups} groups: expected C / groups "
            "input channels per kernel, and groups that divide the output channels"
        )
    if not x.size:
        return XLA.conv(x, kernel, bias, stride=stride, padding=padding, groups=groups)
    kernel, bias = kernel.astype(jnp.float32), bias.astype(jnp.float32)
    return _conv(x, kernel, bias, stride, padding, groups)


def dense(x: Array, kernel: Array, bias: Array) -> Array:
    """`models.ops.Dense`, as a 1x1 convolution.

    Differentiable once, in reverse mode.

    Raises:
      ValueError: x is neither float32 nor bfloat16, or the shapes are inconsistent.
    """
    if x.ndim < 2 or kernel.ndim != 2 or (x.shape[-1], *bias.shape) != kernel.shape:
        raise ValueError(
            f"got x {x.shape}, kernel {kernel.shape}, bias {bias.shape}: expected (B, ..., C), "
            "(C, F), (F,)"
        )
    pixels = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), 1, x.shape[-1])
    return conv(pixels, kernel[None, None], bias).reshape(*x.shape[:-1], kernel.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _group_norm(x: Array, scale: Array, shift: Array, groups: int, eps: float, silu: bool) -> Array:
    return _group_norm_forward(x, scale, shift, groups, eps, silu)[0]


def _group_norm_forward(
    x: Array, scale: Array, shift: Array, groups: int, eps: float, silu: bool
) -> tuple[Array, tuple[Array, ...]]:
    statistics = _like((x.shape[0], groups), jnp.float32)
    y, mean, rstd = _call(
        "group_norm_forward", (_like(x.shape, x.dtype), statistics, statistics), x, scale, shift,
        groups=np.int64(groups), eps=np.float32(eps), silu=np.bool_(silu),
    )  # fmt: skip
    return y, (x, scale, shift, mean, rstd)


def _group_norm_backward(
    groups: int, eps: float, silu: bool, saved: tuple[Array, ...], dy: Array
) -> tuple[Array, Array, Array]:
    x, scale, shift, mean, rstd = saved
    dx, dscale, dshift = _call(
        "group_norm_backward",
        (_like(x.shape, x.dtype), _like(scale.shape, jnp.float32), _like(shift.shape, jnp.float32)),
        x, scale, shift, mean, rstd, dy,
        groups=np.int64(groups), silu=np.bool_(silu),
    )  # fmt: skip
    return dx, dscale, dshift


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)


def group_norm(
    x: Array, scale: Array, shift: Array, *, groups: int, eps: float, silu: bool
) -> Array:
    """`models.ops.GroupNorm`, one image at a time, so that it stays in the processor's cache.

    Differentiable once, in reverse mode.

    Raises:
      ValueError: x is neither float32 nor bfloat16, or the shapes are inconsistent.
    """
    _check_dtype(x)
    expected = (x.shape[0], x.shape[-1])
    if scale.shape != expected or shift.shape != expected or x.shape[-1] % groups:
        raise ValueError(
            f"got x {x.shape}, scale {scale.shape}, shift {shift.shape}, {groups} groups: expected "
            "(B, ..., C), (B, C), (B, C), a divisor of C"
        )
    if not x.size:
        return x
    scale, shift = scale.astype(jnp.float32), shift.astype(jnp.float32)
    return _group_norm(x, scale, shift, groups, eps, silu)


def _check_dtype(x: Array) -> None:
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"got images of {x.dtype}: the accelerator takes float32 or bfloat16")


NATIVE = Ops(conv, dense, group_norm)
