"""A native function's derivatives of every order, from three primitives.

    forward(*at)                        y, and what it keeps
    tangent(*at, *kept, *changes)       dy
    backward(*at, *kept, dy)            the gradients with respect to at

Tangent and backward are functions of `at`, which `kept` only spares them to compute. They are
linear in what follows, and each other's transpose. How they change with `at` is left to a reference
in JAX, so derivatives of the second order are those of the reference.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad

from diffjax.types import Array


def link(
    forward: Primitive,
    tangent: Primitive,
    backward: Primitive,
    *,
    reference: Callable[..., Array],
    operands: int = 3,
) -> None:
    """Adds the rules of differentiation to three primitives with the same options.

    Args:
      forward, tangent, backward: see above.
      reference: (*at, **options) -> y, in JAX.
      operands: number of `at`.
    """

    def forward_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
        y, *kept = forward.bind(*primals, **options)
        (dy,) = tangent.bind(*primals, *kept, *_filled(tangents), **options)
        # Kept values are read by `tangent` and `backward` alone, whose derivatives do not go
        # through them.
        return [y, *kept], [dy, *(ad.Zero(jax.typeof(one)) for one in kept)]

    def tangent_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
        at, linear = primals[:operands], primals[-operands:]
        moved, moved_linear = tangents[:operands], tangents[-operands:]
        (dy,) = tangent.bind(*primals, **options)
        change = ad.Zero(jax.typeof(dy))
        if not _is_zero(moved_linear):
            change = tangent.bind(*primals[:-operands], *_filled(moved_linear), **options)[0]
        if not _is_zero(moved):
            of_tangent, _ = second_order(tuple(sorted(options.items())))
            more = of_tangent(at, _filled(moved), linear)
            change = ad.add_tangents(change, more)
        return [dy], [change]

    def tangent_transpose(cotangents: Any, *given: Any, **options: Any) -> Any:
        if _is_zero(cotangents):
            return [None] * len(given)
        gradients = backward.bind(*given[:-operands], *cotangents, **options)
        asked = map(ad.is_undefined_primal, given[-operands:])
        wanted = [one if is_asked else None for one, is_asked in zip(gradients, asked, strict=True)]
        return *(None for _ in given[:-operands]), *wanted

    def backward_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
        at, dy = primals[:operands], primals[-1]
        moved, moved_linear = tangents[:operands], tangents[-1:]
        gradients = backward.bind(*primals, **options)
        changes = [ad.Zero(jax.typeof(one)) for one in gradients]
        if not _is_zero(moved_linear):
            changes = backward.bind(*primals[:-1], *moved_linear, **options)
        if not _is_zero(moved):
            _, of_backward = second_order(tuple(sorted(options.items())))
            more = of_backward(at, _filled(moved), dy)
            changes = [ad.add_tangents(*pair) for pair in zip(changes, more, strict=True)]
        return gradients, changes

    def backward_transpose(cotangents: Any, *given: Any, **options: Any) -> Any:
        if _is_zero(cotangents):
            return [None] * len(given)
        (dy,) = tangent.bind(*given[:-1], *_filled(cotangents), **options)
        return *(None for _ in given[:-1]), dy

    @functools.cache
    def second_order(options: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
        function = functools.partial(reference, **dict(options))

        def of_tangent(at: Any, moved: Any, tangents: Any) -> Array:
            return jax.jvp(lambda *at: jax.jvp(function, at, tangents)[1], at, moved)[1]

        def of_backward(at: Any, moved: Any, dy: Array) -> Any:
            return jax.jvp(lambda *at: jax.vjp(function, *at)[1](dy), at, moved)[1]

        return jax.jit(of_tangent), jax.jit(of_backward)

    ad.primitive_jvps.update({forward: forward_jvp, tangent: tangent_jvp, backward: backward_jvp})
    ad.primitive_transposes.update({tangent: tangent_transpose, backward: backward_transpose})


def _is_zero(tangents: Any) -> bool:
    return all(isinstance(one, ad.Zero) for one in tangents)


def _filled(tangents: Any) -> tuple[Array, ...]:
    return tuple(ad.instantiate_zeros(one) for one in tangents)
