"""Exponential moving averages of parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from diffjax.schedules import Array


def warmed_up_decay(step: Array, *, decay: float) -> Array:
    """min(decay, (1 + step) / (10 + step)): a young average forgets its random start.

    The warm-up of TensorFlow's ExponentialMovingAverage: after n steps the average spans about
    n / 9 of them until `decay` takes over, so early EMA samples are not noise.

    Args:
      step: number of updates already made, from 0.
      decay: the decay in the long run, in [0, 1).

    >>> [round(float(warmed_up_decay(s, decay=0.999)), 3) for s in (0, 90, 10**6)]
    [0.1, 0.91, 0.999]
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def update(average: Any, params: Any, *, decay: Array) -> Any:
    """average + (1 - decay) (params - average), leaf by leaf, in the average's types.

    Args:
      average, params: pytrees of the same structure.
      decay: scalar in [0, 1].

    Raises:
      ValueError: trees of different structures.
    """
    return jax.tree.map(
        lambda a, p: (a + (1 - decay) * (p - a)).astype(jnp.result_type(a)), average, params
    )
