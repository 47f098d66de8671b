r"""Training times drawn where the loss is large, and the weights that take the bias out again.

    mean_t L_t = E_{t ~ p}[L_t / (T p_t)],    least variance at p_t ~ sqrt(E[L_t^2])        (1)

Nichol & Dhariwal 2021, section 3.3 and equation 18, for the variational bound, whose L_t differ by
orders of magnitude between steps. E[L_t^2] is the mean over the last losses seen at t, which a
`History` holds; before each t has been seen often enough, p is uniform. A train step is

    t, weight = sample(key, history, indices=indices, batch_size=batch_size)
    losses    = ...                                     # (B,) at t
    gradient of mean(weight * losses)
    history   = update(history, t, losses)

Under data parallelism every device must update with the same batch: `update` takes the all-gathered
t and losses, in the order of the global batch, and `history` stays replicated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int32, Integer

from diffjax.checks import checked
from diffjax.types import Array, Indices, PerExample, PRNGKey


class History(NamedTuple):
    """The last losses at each time of a discrete schedule; row i is that of t = i + 1.

    Attributes:
      values: (T, length) float32, a ring: loss number n is at index n mod length.
      count: (T,) int32: losses seen so far.
    """

    values: Float32[Array, "T length"]
    count: Int32[Array, " T"]  # type: ignore[assignment]  # tuple.count, which nobody asks of it


@checked
def empty(T: int, *, length: int = 10) -> History:
    """A history without a loss.

    Args:
      T: number of steps of the schedule.
      length: losses kept of each time.

    Raises:
      ValueError: T or length below 1.

    >>> import diffjax as dj
    >>> history = dj.importance_sampling.empty(4)
    >>> print(history.values.shape, history.count)
    (4, 10) [0 0 0 0]
    """
    if T < 1 or length < 1:
        raise ValueError(f"T and length must be at least 1, not {T} and {length}")
    return History(jnp.zeros((T, length), jnp.float32), jnp.zeros(T, jnp.int32))


@checked
def update(history: History, t: Integer[Array, " batch"], losses: PerExample) -> History:
    """The history after a batch; losses at the same t enter in their order within the batch.

    Args:
      history: the history before.
      t: (B,) integers in 1..T.
      losses: (B,) unweighted losses at t. One that is not finite is left out: through it every
        probability would become NaN. So is one at another t.

    Returns:
      A `History`.

    Raises:
      ValueError: t and losses not of one shape (B,).

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> history = dj.importance_sampling.empty(2, length=2)
    >>> t, losses = jnp.array([1, 2, 2, 2]), jnp.array([5.0, 1.0, 2.0, jnp.nan])
    >>> history = jax.jit(dj.importance_sampling.update)(history, t, losses)
    >>> print(history.count, history.values[1])  # of t = 2
    [1 2] [1. 2.]
    """
    T, length = history.values.shape
    losses = jax.lax.stop_gradient(losses).astype(jnp.float32)
    # Row T does not exist: what is sent there is dropped.
    row = jnp.where(jnp.isfinite(losses) & (t >= 1) & (t <= T), t - 1, T)
    order = jnp.argsort(row, stable=True)
    row, losses = row[order], losses[order]
    first, after = (jnp.searchsorted(row, row, side=side) for side in ("left", "right"))
    place = jnp.arange(len(row))
    column = (history.count.at[row].get(mode="clip") + place - first) % length
    # Of more than `length` losses at one t the last stay, and no two are written to one place.
    stays = place >= after - length
    values = history.values.at[jnp.where(stays, row, T), column].set(losses, mode="drop")
    return History(values, history.count.at[row].add(1, mode="drop"))


@checked
def probabilities(history: History, *, uniform_share: float = 0.001) -> Float[Array, " T"]:
    """(T,) float32: p_1..p_T of equation (1), uniform until every t has `length` losses.

    Args:
      history: the losses seen so far.
      uniform_share: the part of p that is uniform, in (0, 1]. Without it a t whose losses were all
        0 would never be seen again.

    Raises:
      ValueError: uniform_share out of range.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> history = dj.importance_sampling.History(jnp.array([[1.0], [3.0]]), jnp.array([1, 1]))
    >>> p = jax.jit(dj.importance_sampling.probabilities)(history)
    >>> print(f"{p[0]:.2f} {p[1]:.2f}")  # as 1 to 3
    0.25 0.75
    """
    if not 0 < uniform_share <= 1:
        raise ValueError(f"uniform_share must be in (0, 1], not {uniform_share}")
    T, length = history.values.shape
    # Divided by the largest first: its square may be more than float32 holds.
    largest = jnp.max(jnp.abs(history.values))
    scaled = history.values / jnp.where(largest > 0, largest, 1.0)
    size = jnp.sqrt(jnp.mean(jnp.square(scaled), axis=1))
    known = jnp.all(history.count >= length) & (largest > 0)
    size = jnp.where(known, size, 1.0)
    return (1 - uniform_share) * size / jnp.sum(size) + uniform_share / T


@checked
def sample(
    key: PRNGKey,
    history: History,
    *,
    indices: Indices,
    batch_size: int,
    uniform_share: float = 0.001,
) -> tuple[Int32[Array, " batch"], PerExample]:
    """Times t ~ p and the weights 1 / (T p_t) that make the weighted mean loss unbiased.

    Levels u_i = (u_0 + i / batch_size) mod 1, with one uniform u_0 for the batch, go through the
    inverse of p's distribution function, as in `time_sampling.low_discrepancy`. Each t_i has the
    law p as an independent one would, but a batch holds each t either floor(p_t batch_size) times
    or once more: the variance of its loss is lower, and the first histories fill evenly.

    Args:
      key: a PRNG key.
      history: the losses seen so far.
      indices: (B,) integers: the examples' places in the global batch.
      batch_size: the global batch's.
      uniform_share: as in `probabilities`.

    Returns:
      t (B,) int32 in 1..T, weight (B,) float32.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> losses = jnp.array([1.0, 3.0])  # at t = 1 and t = 2
    >>> history = dj.importance_sampling.History(losses[:, None], jnp.array([1, 1]))
    >>> draw = jax.jit(dj.importance_sampling.sample, static_argnames="batch_size")
    >>> t, weight = draw(jax.random.key(0), history, indices=jnp.arange(8), batch_size=8)
    >>> print(jnp.sort(t), f"{(weight * losses[t - 1]).mean():.1f}")  # the mean loss is 2
    [1 1 2 2 2 2 2 2] 2.0
    """
    p = probabilities(history, uniform_share=uniform_share)
    T = len(p)
    u = (jax.random.uniform(key) + indices / batch_size) % 1.0
    cumulative = jnp.cumsum(p)
    # Rounding may leave the last sum below 1.
    row = jnp.searchsorted(cumulative / cumulative[-1], u, side="right").clip(0, T - 1)
    return 1 + row.astype(jnp.int32), 1 / (T * p[row])
