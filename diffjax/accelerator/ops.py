"""`models.Ops` from the native library, for operands that are checked."""

import math

import jax.numpy as jnp

from diffjax.accelerator.attention import attend
from diffjax.accelerator.convolution import convolution
from diffjax.accelerator.group_norm import normalise
from diffjax.accelerator.rms_norm import normalise as normalise_rms
from diffjax.accelerator.swiglu import gated
from diffjax.models.ops import XLA, Ops
from diffjax.types import Array


def conv(
    x: Array, kernel: Array, bias: Array, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> Array:
    """`models.ops.Conv` with oneDNN.

    For a bfloat16 x the kernel is rounded to bfloat16 on processors with AMX, and for 1x1 kernels
    on those with AVX-512 BF16; else x is converted to float32. Sums are float32 in each case.

    Differentiable any number of times, in both modes.

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
    return convolution(x, kernel, bias, stride=stride, padding=padding, groups=groups)


def dense(x: Array, kernel: Array, bias: Array) -> Array:
    """`models.ops.Dense`, as a 1x1 convolution.

    Differentiable any number of times, in both modes.

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


def group_norm(
    x: Array, scale: Array, shift: Array, *, groups: int, eps: float, silu: bool
) -> Array:
    """`models.ops.GroupNorm`, one image at a time, so that it stays in the processor's cache.

    Differentiable any number of times, in both modes.

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
    return normalise(x, scale, shift, groups=groups, eps=eps, silu=silu)


def rms_norm(x: Array, scale: Array, *, eps: float) -> Array:
    """`models.ops.RMSNorm`.

    Differentiable any number of times, in both modes.

    Raises:
      ValueError: x is neither float32 nor bfloat16, or the shapes are inconsistent.
    """
    _check_dtype(x)
    if scale.shape != x.shape[-1:] or not x.ndim:
        raise ValueError(f"got x {x.shape} and scale {scale.shape}: expected (..., C) and (C,)")
    if not x.size:
        return x
    return normalise_rms(x, scale.astype(jnp.float32), eps=eps)


def swiglu(x: Array) -> Array:
    """`models.ops.SwiGlu`, with the sigmoid and the product in float32.

    Differentiable any number of times, in both modes.

    Raises:
      ValueError: x is neither float32 nor bfloat16, or its channels are no two halves.
    """
    _check_dtype(x)
    if not x.ndim or x.shape[-1] % 2:
        raise ValueError(f"got x {x.shape}: expected (..., 2 C)")
    return gated(x) if x.size else XLA.swiglu(x)


def attention(q: Array, k: Array, v: Array) -> Array:
    """`models.ops.Attention`, a block of queries at a time, in float32.

    No matrix of queries x keys is stored for the backward pass. Differentiable any number of times,
    in both modes.

    Raises:
      ValueError: q is neither float32 nor bfloat16, k or v is of another type, or the shapes are
        inconsistent.
    """
    _check_dtype(q)
    batch, _, heads, depth = q.shape if q.ndim == 4 else (0,) * 4
    if k.shape != v.shape or q.ndim != 4 or k.shape != (batch, *k.shape[1:2], heads, depth):
        raise ValueError(
            f"got q {q.shape}, k {k.shape}, v {v.shape}: expected (B, L, heads, D) and twice "
            "(B, L', heads, D)"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"got q {q.dtype}, k {k.dtype}, v {v.dtype}: expected one type")
    if not (q.size and k.size):
        return XLA.attention(q, k, v)
    return attend(q, k, v)


def _check_dtype(x: Array) -> None:
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"got images of {x.dtype}: the accelerator takes float32 or bfloat16")


NATIVE = Ops(conv, dense, group_norm, attention, rms_norm, swiglu)
