"""Alignment of a network's features with those of another one (REPA).

Yu et al. 2024, "Representation alignment for generation", equation 8: the cosine of the angle
between a projection of a block's token h at x_t and a frozen network's feature y of x_0 at the same
place, averaged over places,

    L = -mean over places of <p(h), y> / (|p(h)| |y|).                                        (1)
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffjax.types import Array

# Of the squared lengths in equation (1).
SMALLEST = 1e-12


def alignment_loss(projected: Array, features: Array) -> Array:
    """Equation (1), in [-1, 1].

    Args:
      projected: (B, h, w, D) projections of a block's tokens.
      features: (B, h', w', D) of the clean images; resized bilinearly to (h, w).

    Returns:
      (B,).

    >>> import jax.numpy as jnp
    >>> h = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])[:, None, None]  # one place each
    >>> y = jnp.array([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])[:, None, None]
    >>> print(alignment_loss(h, y).round() + 0.0)  # the same direction, a right angle, the opposite
    [-1.  0.  1.]
    """
    size = (*projected.shape[:3], features.shape[-1])
    y = jax.lax.stop_gradient(jax.image.resize(features, size, "bilinear"))
    return -jnp.sum(_unit(projected) * _unit(y), axis=-1).mean((1, 2))


def _unit(x: Any) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + SMALLEST)
