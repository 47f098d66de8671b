"""The native attention and its derivatives, as three primitives.

    forward(q, k, v)                          o, log_sum
    tangent(q, k, v, log_sum, dq, dk, dv)     do
    backward(q, k, v, log_sum, do)            dq, dk, dv

log_sum is the logarithm of the sum of each row's exponentials. See `derivatives.link`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.accelerator.derivatives import link
from diffjax.accelerator.primitives import native, primitive
from diffjax.types import Array


def attend(q: Array, k: Array, v: Array) -> Array:
    """`models.ops.Attention` for operands that are not empty and of consistent shapes.

    Differentiable any number of times, in both modes. Reverse mode is native and keeps no matrix of
    queries x keys; forward mode is JAX's and has one, and of the second order it is
    `jax.nn.dot_product_attention` that is differentiated.
    """
    return forward.bind(q, k, v, scale=q.shape[-1] ** -0.5)[0]


def _like(*operands: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in operands)


def _outputs(q: Any, *_: Any, **__: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    batch, length, heads, _ = q.shape
    return (*_like(q), jax.ShapeDtypeStruct((batch, heads, length), jnp.float32))


def _attributes(*, scale: float) -> dict[str, Any]:
    return {"scale": np.float32(scale)}


def _tangent(
    q: Array, k: Array, v: Array, log_sum: Array, dq: Array, dk: Array, dv: Array, *, scale: float
) -> tuple[Array]:
    """With P = exp(scale q k^T - log_sum) and dS = scale (dq k^T + q dk^T):

    do = (P dS) v - rowsum(P dS) (P v) + P dv
    """
    dtype = q.dtype
    q, k, v, dq, dk, dv = (x.astype(jnp.float32) for x in (q, k, v, dq, dk, dv))

    def scores(q: Array, k: Array) -> Array:
        return scale * jnp.einsum("blhd,bmhd->bhlm", q, k)

    def mixed(weights: Array, v: Array) -> Array:
        return jnp.einsum("bhlm,bmhd->blhd", weights, v)

    weights = jnp.exp(scores(q, k) - log_sum[..., None])
    change = weights * (scores(dq, k) + scores(q, dk))
    change = change - weights * change.sum(-1, keepdims=True)
    return ((mixed(change, v) + mixed(weights, dv)).astype(dtype),)


def _reference(q: Array, k: Array, v: Array, *, scale: float) -> Array:
    return jax.nn.dot_product_attention(q, k, v, scale=scale)


forward = native("attention_forward", results=_outputs, attributes=_attributes)
tangent = primitive("attention_tangent", _tangent, results=lambda q, *_, **__: _like(q))
backward = native(
    "attention_backward", results=lambda q, k, v, *_, **__: _like(q, k, v), attributes=_attributes
)
link(forward, tangent, backward, reference=_reference)
