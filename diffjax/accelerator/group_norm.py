"""The native group normalisation and its derivatives, as three primitives.

    forward(x, scale, shift)                        y, mean, rstd
    tangent(x, scale, shift, mean, rstd, dx, dscale, dshift)      dy
    backward(x, scale, shift, mean, rstd, dy)       dx, dscale, dshift

mean and rstd are each group's. Tangent and backward are functions of (x, scale, shift), which
mean and rstd only spare the sums. They are linear in what follows, and each other's transpose; how
they change with (x, scale, shift) is left to `models.ops.XLA`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

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


@functools.partial(jax.jit, static_argnames=("groups", "eps", "silu"))
def _change_of_tangent(at: Any, moved: Any, tangents: Any, **options: Any) -> Array:
    """How `tangent` changes with at = (x, scale, shift)."""

    def of(*at: Array) -> Array:
        return jax.jvp(functools.partial(XLA.group_norm, **options), at, tangents)[1]

    return jax.jvp(of, at, moved)[1]


@functools.partial(jax.jit, static_argnames=("groups", "eps", "silu"))
def _change_of_backward(
    at: Any, moved: Any, dy: Array, **options: Any
) -> tuple[Array, Array, Array]:
    """How `backward` changes with at = (x, scale, shift)."""

    def of(*at: Array) -> Any:
        return jax.vjp(functools.partial(XLA.group_norm, **options), *at)[1](dy)

    return jax.jvp(of, at, moved)[1]


_NOT_LINEAR = (None,) * 5  # what x, scale, shift, mean and rstd have for a cotangent


def _is_zero(tangents: Any) -> bool:
    return all(isinstance(one, ad.Zero) for one in tangents)


def _filled(tangents: Any) -> tuple[Array, ...]:
    return tuple(ad.instantiate_zeros(one) for one in tangents)


def _forward_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    y, mean, rstd = forward.bind(*primals, **options)
    (dy,) = tangent.bind(*primals, mean, rstd, *_filled(tangents), **options)
    # Of x, but read by `tangent` and `backward` alone, whose derivatives do not go through them.
    return [y, mean, rstd], [dy, ad.Zero(jax.typeof(mean)), ad.Zero(jax.typeof(rstd))]


def _tangent_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    at, linear = primals[:3], primals[5:]
    moved, moved_linear = tangents[:3], tangents[5:]
    (dy,) = tangent.bind(*primals, **options)
    change = ad.Zero(jax.typeof(dy))
    if not _is_zero(moved_linear):
        change = tangent.bind(*primals[:5], *_filled(moved_linear), **options)[0]
    if not _is_zero(moved):
        change = ad.add_tangents(change, _change_of_tangent(at, _filled(moved), linear, **options))
    return [dy], [change]


def _tangent_transpose(cotangents: Any, *operands: Any, **options: Any) -> Any:
    if _is_zero(cotangents):
        return [None] * len(operands)
    gradients = backward.bind(*operands[:5], *cotangents, **options)
    asked = map(ad.is_undefined_primal, operands[5:])
    wanted = [one if is_asked else None for one, is_asked in zip(gradients, asked, strict=True)]
    return *_NOT_LINEAR, *wanted


def _backward_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    at, (dy,) = primals[:3], primals[5:]
    moved, moved_linear = tangents[:3], tangents[5:]
    gradients = backward.bind(*primals, **options)
    changes = [ad.Zero(jax.typeof(one)) for one in gradients]
    if not _is_zero(moved_linear):
        changes = backward.bind(*primals[:5], *moved_linear, **options)
    if not _is_zero(moved):
        more = _change_of_backward(at, _filled(moved), dy, **options)
        changes = [ad.add_tangents(*pair) for pair in zip(changes, more, strict=True)]
    return gradients, changes


def _backward_transpose(cotangents: Any, *operands: Any, **options: Any) -> Any:
    if _is_zero(cotangents):
        return [None] * len(operands)
    (dy,) = tangent.bind(*operands[:5], *_filled(cotangents), **options)
    return *_NOT_LINEAR, dy


ad.primitive_jvps.update(
    {forward: _forward_jvp, tangent: _tangent_jvp, backward: _backward_jvp},
)
ad.primitive_transposes.update({tangent: _tangent_transpose, backward: _backward_transpose})
