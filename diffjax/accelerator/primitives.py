"""JAX primitives from functions.

A primitive has a rule for each mode of differentiation: how a tangent passes through it, and, where
it is linear, its transpose (https://docs.jax.dev/en/latest/jax-primitives.html). A call into a
native library needs both: `jax.custom_vjp` has no forward mode, and `jax.custom_jvp` can't
transpose the call.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from diffjax.types import Array


def native(
    target: str,
    *,
    results: Callable[..., tuple[jax.ShapeDtypeStruct, ...]],
    attributes: Callable[..., dict[str, Any]],
) -> Primitive:
    """The primitive of a function of the native library.

    Args:
      target: its name, without "diffjax_".
      results: (*operands, **parameters) -> shapes and types of its results.
      attributes: (**parameters) -> its attributes.
    """

    def call(*operands: Array, **parameters: Any) -> Any:
        function = jax.ffi.ffi_call(f"diffjax_{target}", results(*operands, **parameters))
        return function(*operands, **attributes(**parameters))

    return primitive(target, call, results=results)


def primitive(
    name: str,
    function: Callable[..., Sequence[Array]],
    *,
    results: Callable[..., tuple[jax.ShapeDtypeStruct, ...]],
) -> Primitive:
    """A primitive whose rules for derivatives are yet to be added; it returns a list.

    Outside of `jax.jit` it is compiled once for every set of shapes. Under `jax.vmap` it is called
    for one element at a time, which handles any mix of mapped and shared operands. `jax.shard_map`
    needs check_vma=False: else a ValueError.

    Args:
      name: what jaxprs call it, after "diffjax_".
      function: (*operands, **parameters) -> several arrays, in JAX. Parameters are hashable.
      results: (*operands, **parameters) -> their shapes and types.
    """
    made = Primitive(f"diffjax_{name}")
    made.multiple_results = True

    @functools.cache
    def compiled(parameters: tuple[tuple[str, Any], ...]) -> Any:
        return jax.jit(functools.partial(function, **dict(parameters)))

    @made.def_impl
    def _(*operands: Array, **parameters: Any) -> Any:
        return compiled(tuple(sorted(parameters.items())))(*operands)

    @made.def_abstract_eval
    def _(*operands: Any, **parameters: Any) -> Any:
        if any(map(_varies, operands)):
            raise ValueError(
                f"the accelerator's {name} does not tell jax.shard_map over which axes it varies: "
                "pass check_vma=False"
            )
        found = results(*operands, **parameters)
        return [jax.core.ShapedArray(one.shape, one.dtype) for one in found]

    def one_at_a_time(operands: Any, axes: Any, **parameters: Any) -> Any:
        mapped = {
            i: jnp.moveaxis(operand, axis, 0)
            for i, (operand, axis) in enumerate(zip(operands, axes, strict=True))
            if axis is not None
        }

        def one(elements: dict[int, Array]) -> Any:
            now = [elements.get(i, operand) for i, operand in enumerate(operands)]
            return made.bind(*now, **parameters)

        found = jax.lax.map(one, mapped)
        return found, [0] * len(found)

    batching.primitive_batchers[made] = one_at_a_time
    mlir.register_lowering(made, mlir.lower_fun(function, multiple_results=True))
    return made


def _varies(operand: Any) -> bool:
    """Whether it differs between devices in a `jax.shard_map` that keeps account of that."""
    account = getattr(operand, "manual_axis_type", None)  # not a documented name
    return bool(account is not None and account.varying)
