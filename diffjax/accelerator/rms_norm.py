"""The native root mean square normalisation and its derivatives, as three primitives.

    forward(x, scale)                          y, rstd
    tangent(x, scale, rstd, dx, dscale)        dy
    backward(x, scale, rstd, dy)               dx, dscale

rstd is each row's 1 / sqrt(mean(x^2) + eps). See `derivatives.link`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.accelerator.derivatives import link
from diffjax.accelerator.primitives import native, primitive
from diffjax.models.ops import XLA
from diffjax.types import Array


def normalise(x: Array, scale: Array, *, eps: float) -> Array:
    """`models.ops.RMSNorm` for operands that are not empty and of consistent shapes."""
    return forward.bind(x, scale, eps=eps)[0]


def _like(*operands: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in operands)


def _tangent(
    x: Array, scale: Array, rstd: Array, dx: Array, dscale: Array, *, eps: float
) -> tuple[Array]:
    """With n = rstd x:  dy = scale rstd (dx - n mean(n dx)) + dscale n"""
    del eps
    rstd = rstd[..., None]
    n, wide = x.astype(jnp.float32) * rstd, dx.astype(jnp.float32)
    dn = rstd * (wide - n * (n * wide).mean(-1, keepdims=True))
    return ((scale * dn + dscale * n).astype(x.dtype),)


forward = native(
    "rms_norm_forward",
    results=lambda x, *_, **__: (*_like(x), jax.ShapeDtypeStruct(x.shape[:-1], jnp.float32)),
    attributes=lambda *, eps: {"eps": np.float32(eps)},
)
tangent = primitive("rms_norm_tangent", _tangent, results=lambda x, *_, **__: _like(x))
backward = native(
    "rms_norm_backward",
    results=lambda x, scale, *_, **__: _like(x, scale),
    attributes=lambda *, eps: {},  # it is in rstd
)
link(forward, tangent, backward, reference=XLA.rms_norm, operands=2)
