"""The native group normalisation and its derivatives, as three primitives.

    forward(x, scale, shift)                        y, mean, rstd
    tangent(x, scale, shift, mean, rstd, dx, dscale, dshift)      dy
    backward(x, scale, shift, mean, rstd, dy)       dx, dscale, dshift

mean and rstd are each group's. See `derivatives.link`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.accelerator.derivatives import link
from diffjax.accelerator.primitives import native, primitive
from diffjax.models.ops import XLA
from diffjax.types import Array


def normalise(
    x: Array, scale: Array, shift: Array, *, groups: int, eps: float, silu: bool
) -> Array:
    """`models.ops.GroupNorm` for operands that are not empty and of consistent shapes.

    Differentiable any number of times, in both modes: reverse mode is native, forward mode one
    multiply-add in JAX, and of the second order it is `models.ops.XLA`'s that is differentiated.
    """
    return forward.bind(x, scale, shift, groups=groups, eps=eps, silu=silu)[0]


def _like(*operands: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in operands)


def _outputs(x: Any, *_: Any, groups: int, **__: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    statistics = jax.ShapeDtypeStruct((x.shape[0], groups), jnp.float32)
    return (*_like(x), statistics, statistics)


def _forward_attributes(*, groups: int, eps: float, silu: bool) -> dict[str, Any]:
    return {"groups": np.int64(groups), "eps": np.float32(eps), "silu": np.bool_(silu)}


def _backward_attributes(*, groups: int, eps: float, silu: bool) -> dict[str, Any]:
    del eps  # in rstd
    return {"groups": np.int64(groups), "silu": np.bool_(silu)}


def _tangent(
    x: Array, scale: Array, shift: Array, mean: Array, rstd: Array, dx: Array, dscale: Array,
    dshift: Array, *, groups: int, eps: float, silu: bool,
) -> tuple[Array]:  # fmt: skip
    """With h = rstd (x - mean), u = scale h + shift and means over groups:

    dh = rstd (dx - mean(dx) - h mean(h dx))
    dy = act'(u) (scale dh + dscale h + dshift)
    """
    del eps
    space = tuple(range(1, x.ndim - 1))
    width = x.shape[-1] // groups

    def per_channel(of_group: Array) -> Array:
        return jnp.expand_dims(jnp.repeat(of_group, width, axis=-1), space)

    def group_mean(image: Array) -> Array:
        return per_channel(image.mean(space).reshape(-1, groups, width).mean(-1))

    mean, rstd = per_channel(mean), per_channel(rstd)
    scale, shift, dscale, dshift = (
        jnp.expand_dims(one, space) for one in (scale, shift, dscale, dshift)
    )
    wide, dwide = x.astype(jnp.float32), dx.astype(jnp.float32)
    centred = wide - mean
    multiplier = rstd * scale
    on_x = rstd * (dscale - multiplier * rstd * group_mean(centred * dwide))
    dy = multiplier * dwide + on_x * centred + (dshift - multiplier * group_mean(dwide))
    if silu:
        u = multiplier * centred + shift
        gate = jax.nn.sigmoid(u)
        dy = dy * gate * (1 + u * (1 - gate))
    return (dy.astype(x.dtype),)


forward = native("group_norm_forward", results=_outputs, attributes=_forward_attributes)
tangent = primitive("group_norm_tangent", _tangent, results=lambda x, *_, **__: _like(x))
backward = native(
    "group_norm_backward",
    results=lambda x, scale, shift, *_, **__: _like(x, scale, shift),
    attributes=_backward_attributes,
)


link(forward, tangent, backward, reference=XLA.group_norm)
