"""The native convolution and its derivatives, as three primitives.

    forward(x, kernel, bias)      y = x * kernel + bias
    input_gradient(dy, kernel)    of <dy, y> with respect to x
    kernel_gradient(x, dy)        of <dy, y> with respect to kernel, and to bias

<dy, x * kernel> is linear in each of its three factors, and each primitive is its gradient with
respect to one. So tangents and cotangents of all three pass through them by these three again, any
number of times.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad

from diffjax.accelerator.primitives import native
from diffjax.types import Array


def convolution(
    x: Array, kernel: Array, bias: Array, *, stride: int, padding: int, groups: int
) -> Array:
    """`models.ops.Conv` for operands that are not empty and of consistent shapes.

    Differentiable any number of times, in both modes. A derivative with respect to kernel and bias
    is one call; without a tangent they cost nothing.
    """
    return forward.bind(x, kernel, bias, stride=stride, padding=padding, groups=groups)[0]


def _output(
    x: Any, kernel: Any, *_: Any, stride: int, padding: int, groups: int
) -> tuple[jax.ShapeDtypeStruct]:
    del groups
    batch, *size, _ = x.shape
    *window, _, features = kernel.shape
    height, width = (
        (side + 2 * padding - length) // stride + 1
        for side, length in zip(size, window, strict=True)
    )
    return (jax.ShapeDtypeStruct((batch, height, width, features), x.dtype),)


def _input(
    dy: Any, kernel: Any, *, size: tuple[int, int], groups: int, **_: Any
) -> tuple[jax.ShapeDtypeStruct]:
    shape = (dy.shape[0], *size, kernel.shape[2] * groups)
    return (jax.ShapeDtypeStruct(shape, dy.dtype),)


def _parameters(
    x: Any, dy: Any, *, window: tuple[int, int], groups: int, **_: Any
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    features = dy.shape[-1]
    shape = (*window, x.shape[-1] // groups, features)
    return (
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((features,), jnp.float32),
    )


def _attributes(*, stride: int, padding: int, groups: int, **_: Any) -> dict[str, Any]:
    return {
        "stride": np.int64(stride),
        "padding": np.full(4, padding, np.int64),
        "groups": np.int64(groups),
    }


forward = native("convolution_forward", results=_output, attributes=_attributes)
# `size` is (H, W) of the input.
input_gradient = native("convolution_input_gradient", results=_input, attributes=_attributes)
# `window` is (h, w) of the kernel.
kernel_gradient = native("convolution_kernel_gradient", results=_parameters, attributes=_attributes)


def _linear(x: Array, kernel: Array, **options: Any) -> Array:
    """The convolution without a bias."""
    return forward.bind(x, kernel, jnp.zeros(kernel.shape[-1]), **options)[0]


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, ad.Zero)


def _zero(primal: Array) -> Any:
    return ad.Zero(jax.typeof(primal))


def _of_parameters(x: Array, kernel: Any, bias: Any, y: Any, **options: Any) -> Array:
    """forward(x, kernel, bias) of y's shape, where kernel or bias may be `ad.Zero`."""
    if _is_zero(kernel):
        # Type changed last, so that the transpose sums in float32.
        return jnp.broadcast_to(bias, y.shape).astype(y.dtype)
    return forward.bind(x, kernel, ad.instantiate_zeros(bias), **options)[0]


def _forward_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    x, kernel, _ = primals
    dx, dkernel, dbias = tangents
    (y,) = forward.bind(*primals, **options)
    dy = _zero(y)
    if not _is_zero(dx):
        dy = _linear(dx, kernel, **options)
    if not (_is_zero(dkernel) and _is_zero(dbias)):
        dy = ad.add_tangents(dy, _of_parameters(x, dkernel, dbias, y, **options))
    return [y], [dy]


def _forward_transpose(cotangents: Any, x: Any, kernel: Any, bias: Any, **options: Any) -> Any:
    (dy,) = cotangents
    if _is_zero(dy):
        return None, None, None
    if ad.is_undefined_primal(kernel):
        return None, *kernel_gradient.bind(x, dy, window=kernel.aval.shape[:2], **options)
    dx = dbias = None
    if ad.is_undefined_primal(x):
        (dx,) = input_gradient.bind(dy, kernel, size=x.aval.shape[1:3], **options)
    if ad.is_undefined_primal(bias):
        dbias = dy.astype(jnp.float32).sum((0, 1, 2))
    return dx, None, dbias


def _input_gradient_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    (dy, kernel), (change, dkernel) = primals, tangents
    (dx,) = input_gradient.bind(dy, kernel, **options)
    change_of_dx = _zero(dx)
    if not _is_zero(change):
        (change_of_dx,) = input_gradient.bind(change, kernel, **options)
    if not _is_zero(dkernel):
        (more,) = input_gradient.bind(dy, dkernel, **options)
        change_of_dx = ad.add_tangents(change_of_dx, more)
    return [dx], [change_of_dx]


def _input_gradient_transpose(
    cotangents: Any, dy: Any, kernel: Any, *, size: tuple[int, int], **options: Any
) -> Any:
    del size
    (x,) = cotangents
    if _is_zero(x):
        return None, None
    if ad.is_undefined_primal(dy):
        return _linear(x, kernel, **options), None
    return None, kernel_gradient.bind(x, dy, window=kernel.aval.shape[:2], **options)[0]


def _kernel_gradient_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    (x, dy), (dx, change) = primals, tangents
    gradients = kernel_gradient.bind(x, dy, **options)
    changes = [_zero(gradient) for gradient in gradients]
    if not _is_zero(change):
        changes = kernel_gradient.bind(x, change, **options)
    if not _is_zero(dx):
        of_kernel, of_bias = changes
        (more, _) = kernel_gradient.bind(dx, dy, **options)
        changes = [ad.add_tangents(of_kernel, more), of_bias]
    return gradients, changes


def _kernel_gradient_transpose(
    cotangents: Any, x: Any, dy: Any, *, window: tuple[int, int], **options: Any
) -> Any:
    del window
    kernel, bias = cotangents
    if ad.is_undefined_primal(dy):
        if _is_zero(kernel) and _is_zero(bias):
            return None, None
        return None, _of_parameters(x, kernel, bias, dy.aval, **options)
    if _is_zero(kernel):
        return None, None  # the bias's gradient does not depend on x
    (dx,) = input_gradient.bind(dy, kernel, size=x.aval.shape[1:3], **options)
    return dx, None


ad.primitive_jvps.update(
    {
        forward: _forward_jvp,
        input_gradient: _input_gradient_jvp,
        kernel_gradient: _kernel_gradient_jvp,
    }
)
ad.primitive_transposes.update(
    {
        forward: _forward_transpose,
        input_gradient: _input_gradient_transpose,
        kernel_gradient: _kernel_gradient_transpose,
    }
)
