"""Gradient accumulation: the mean over micro-batches, in the memory of one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.training.objective import LossAndGrads


def micro_batches(tree: Any, count: int) -> Any:
    """(B, ...) arrays as (count, B / count, ...): micro-batch i has the rows i, i + count, ...

    So rows that a batch's sharding places on a device stay there.
    """
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1),
        tree,
    )


def mean_over_micro_batches(
    loss_and_grads: Callable[[Any], LossAndGrads], examples: Any, *, count: int
) -> LossAndGrads:
    """The mean of loss_and_grads over `count` micro-batches of examples, one at a time.

    Raises:
      ValueError: for count > 1, an objective with a history, which needs whole batches.
    """
    if count == 1:
        return loss_and_grads(examples)
    parts = micro_batches(examples, count)
    one = jax.eval_shape(loss_and_grads, jax.tree.map(lambda x: x[0], parts))
    if jax.tree.leaves(one.history):
        raise ValueError(
            f"train.accumulate = {count} can't be used with an objective that keeps a history from "
            "step to step, such as time_sampling = 'loss_second_moment': expected 1"
        )

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        result = loss_and_grads(part)
        means = (result.loss, result.grads, result.objective_grads, result.metrics)
        return jax.tree.map(jnp.add, total, means), (result.train_objective, result.train_model)

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        (one.loss, one.grads, one.objective_grads, one.metrics),
    )
    total, turns = jax.lax.scan(add, zeros, parts)
    whose_turn = jax.tree.map(lambda x: x[0], turns)  # by the step, so the same in all
    loss, grads, objective_grads, metrics = jax.tree.map(lambda x: x / count, total)
    return LossAndGrads(loss, grads, objective_grads, one.history, metrics, *whose_turn)
