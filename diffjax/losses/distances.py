"""How far two batches are apart: (B, ...), (B, ...) -> (B,), for losses that compare predictions.

All are sums over an example's dimensions, not means, as in the papers that they are of.
"""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.types import Data, PerExample

# The square root's slope is infinite at 0, where two predictions may be equal.
_LEAST = 1e-20


@runtime_checkable
class Distance(Protocol):
    """distance(x, y): (B, ...) each -> (B,), 0 where they are equal."""

    def __call__(self, x: Data, y: Data) -> PerExample: ...


@checked
def squared_error(x: Data, y: Data) -> PerExample:
    """||x - y||^2.

    Args:
      x, y: (B, ...).

    Returns:
      (B,).

    >>> import jax.numpy as jnp, diffjax as dj
    >>> print(dj.distances.squared_error(jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.0]])))
    [25.]
    """
    return jnp.sum(jnp.square(x - y), axis=tuple(range(1, x.ndim)))


@checked
def pseudo_huber(c: float = 0.0) -> Distance:
    """sqrt(||x - y||^2 + c^2) - c: squared where the error is below c, its norm where it is above.

    Song & Dhariwal 2023, "Improved techniques for training consistency models", section 3.3, where
    c = 0.00054 sqrt(D) for D dimensions: 0.015 for 28x28 images, 0.03 for 32x32x3.

    Args:
      c: at least 0; 0 is the norm itself, Geng et al. 2024's choice.

    Raises:
      ValueError: c below 0 or not finite.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> x, y = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.0]])
    >>> for c in (0.0, 12.0):  # the norm, 5; and 13 - 12
    ...     print(dj.distances.pseudo_huber(c)(x, y))
    [5.]
    [1.]
    """
    if not 0 <= c < float("inf"):
        raise ValueError(f"c must be a number of at least 0, not {c}")

    def distance(x: Data, y: Data) -> PerExample:
        return jnp.sqrt(jnp.maximum(squared_error(x, y) + c**2, _LEAST)) - c

    return distance
