r"""Which times a training batch sees: (key, schedule, indices, batch_size) -> t.

Each function draws levels u in (0, 1) and maps them to times: 1 + floor(u T) on a discrete
schedule, u itself (kept `MARGIN` off both ends, where log-SNR may be infinite) on a continuous one.
`indices` are the examples' places in a global batch of `batch_size`, so that a batch spread over
devices gets the times that one device would have given it.
"""

import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from diffjax import rng
from diffjax.checks import checked
from diffjax.schedules import Schedule
from diffjax.types import Indices, PerExample, PRNGKey, TimePerExample

MARGIN = 1e-5


@runtime_checkable
class TimeSampler(Protocol):
    """(key, schedule, *, indices (B,), batch_size) -> t (B,): int32 or float32."""

    def __call__(
        self, key: PRNGKey, schedule: Schedule, *, indices: Indices, batch_size: int
    ) -> TimePerExample: ...


def _level_to_time(u: PerExample, schedule: Schedule) -> TimePerExample:
    if schedule.discrete:
        return jnp.clip(1 + jnp.floor(u * schedule.T).astype(jnp.int32), 1, int(schedule.T))
    return jnp.clip(u, MARGIN, 1 - MARGIN)


@checked
def uniform(
    key: PRNGKey, schedule: Schedule, *, indices: Indices, batch_size: int
) -> TimePerExample:
    """Independent uniform times (Ho et al. 2020, algorithm 1).

    Args:
      key: a PRNG key.
      schedule: whose times are drawn.
      indices: (B,) integers: the examples' places in the global batch.
      batch_size: the global batch's.

    Returns:
      (B,) int32 in 1..T on a discrete schedule, else float32 in [0, 1].

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> options = dict(indices=jnp.arange(512), batch_size=512)
    >>> t = dj.time_sampling.uniform(jax.random.key(0), dj.schedules.cosine(10), **options)
    >>> print(t.min(), t.max(), f"{(t <= 5).mean():.1f}")
    1 10 0.5
    """
    del batch_size
    return _level_to_time(rng.per_example(key, indices, jax.random.uniform), schedule)


@checked
def low_discrepancy(
    key: PRNGKey, schedule: Schedule, *, indices: Indices, batch_size: int
) -> TimePerExample:
    """Stratified times u_i = (u_0 + i / batch_size) mod 1 with one uniform u_0 for the batch.

    Each t_i is uniform and the batch covers the range evenly, which lowers the variance of the
    batch's loss (Kingma et al. 2021, VDM, appendix I.1).

    Args, results: as in `uniform`.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> options = dict(indices=jnp.arange(5), batch_size=5)
    >>> t = dj.time_sampling.low_discrepancy(jax.random.key(0), dj.schedules.cosine(5), **options)
    >>> print(jnp.sort(t))  # one in each fifth
    [1 2 3 4 5]
    """
    u = (jax.random.uniform(key) + indices / batch_size) % 1.0
    return _level_to_time(u, schedule)


def _check_std(std: float) -> None:
    if not std > 0:
        raise ValueError(f"std must be above 0, not {std}")


@checked
def logit_normal(*, mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """t = sigmoid(n), n ~ N(mean, std^2) (Esser et al. 2024, Stable Diffusion 3, equation 19).

    Args:
      mean, std: of the normal variable; mean 0 has its median at t = 1/2.

    Raises:
      ValueError: std not above 0.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> options = dict(indices=jnp.arange(512), batch_size=512)
    >>> draw = dj.time_sampling.logit_normal(mean=0.0, std=1.0)
    >>> flow = dj.schedules.rectified_flow()
    >>> t = jax.jit(lambda key: draw(key, flow, **options))(jax.random.key(0))
    >>> quantiles = (0.3, 0.5, 0.7)  # of 1/5, 1/2 and 4/5: sigmoid(-0.84), ...
    >>> print(*(f"{(t < quantile).mean():.1f}" for quantile in quantiles))
    0.2 0.5 0.8
    """
    _check_std(std)

    def sample(
        key: PRNGKey, schedule: Schedule, *, indices: Indices, batch_size: int
    ) -> TimePerExample:
        del batch_size
        n = mean + std * rng.per_example(key, indices, jax.random.normal)
        return _level_to_time(jax.nn.sigmoid(n), schedule)

    return sample


@checked
def mode(*, scale: float = 1.29) -> TimeSampler:
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), u uniform (Esser et al. 2024, equation 20).

    The density is highest in the middle for scale > 0, at both ends for scale < 0 and even for 0.

    Args:
      scale: in [-1, 2 / (pi - 2)], where t falls with u.

    Raises:
      ValueError: scale out of range.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> options = dict(indices=jnp.arange(512), batch_size=512)
    >>> for scale in (0.0, 1.29):  # even, and gathered in the middle
    ...     draw = dj.time_sampling.mode(scale=scale)
    ...     t = draw(jax.random.key(0), dj.schedules.rectified_flow(), **options)
    ...     print(f"{(abs(t - 0.5) < 0.3).mean():.1f}")
    0.6
    0.8
    """
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ValueError(f"scale must be in [-1, 2 / (pi - 2)], about 1.75, not {scale}")

    def sample(
        key: PRNGKey, schedule: Schedule, *, indices: Indices, batch_size: int
    ) -> TimePerExample:
        del batch_size
        u = rng.per_example(key, indices, jax.random.uniform)
        t = 1 - u - scale * (jnp.cos(math.pi / 2 * u) ** 2 - 1 + u)
        return _level_to_time(t, schedule)

    return sample


@checked
def cosmap(
    key: PRNGKey, schedule: Schedule, *, indices: Indices, batch_size: int
) -> TimePerExample:
    """t = 1 - 1 / (tan(pi u / 2) + 1): a flow with the log-SNR of the cosine schedule.

    Esser et al. 2024, equation 21: density 2 / (pi (1 - 2 t + 2 t^2)).

    Args, results: as in `uniform`.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> flow, options = dj.schedules.rectified_flow(), dict(indices=jnp.arange(512), batch_size=512)
    >>> t = jax.jit(lambda key: dj.time_sampling.cosmap(key, flow, **options))(jax.random.key(0))
    >>> quantiles = (0.245, 0.5, 0.755)  # of 1/5, 1/2 and 4/5: 2/pi arctan(t / (1 - t))
    >>> print(*(f"{(t < quantile).mean():.1f}" for quantile in quantiles))
    0.2 0.5 0.8
    """
    del batch_size
    angle = math.pi / 2 * rng.per_example(key, indices, jax.random.uniform)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    return _level_to_time(sine / (sine + cosine), schedule)


@checked
def log_normal(*, mean: float = -1.2, std: float = 1.2) -> TimeSampler:
    """log sigma ~ N(mean, std^2), sigma = noise_scale / signal_scale (Karras et al. 2022, table 1).

    Drawn by inverse transform within the sigmas that the schedule has, so that no mass gathers at
    its ends; on a discrete schedule the nearest step is taken.

    Args:
      mean, std: P_mean and P_std of the paper.

    Raises:
      ValueError: std not above 0.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> edm, options = dj.schedules.karras(), dict(indices=jnp.arange(512), batch_size=512)
    >>> draw = dj.time_sampling.log_normal(mean=-1.2, std=1.2)
    >>> t = jax.jit(lambda key: draw(key, edm, **options))(jax.random.key(0))
    >>> log_sigma, quantiles = jnp.log(edm(t).noise_scale), (-2.2, -1.2, -0.2)  # the normal's
    >>> print(*(f"{(log_sigma < quantile).mean():.1f}" for quantile in quantiles))
    0.2 0.5 0.8
    """
    _check_std(std)

    def sample(
        key: PRNGKey, schedule: Schedule, *, indices: Indices, batch_size: int
    ) -> TimePerExample:
        del batch_size
        ends = jnp.asarray([max(schedule.t_min, MARGIN), schedule.T * (1 - MARGIN)])
        low, high = norm.cdf((-schedule.log_snr(ends) / 2 - mean) / std)
        u = low + (high - low) * rng.per_example(key, indices, jax.random.uniform)
        # Float32 may round u up to 1, whose quantile is infinite.
        log_sigma = mean + std * norm.ppf(jnp.clip(u, 1e-7, 1 - 1e-7))
        t = schedule.time(-2 * log_sigma)
        if schedule.discrete:
            return jnp.clip(jnp.round(t).astype(jnp.int32), 1, int(schedule.T))
        return jnp.clip(t, ends[0], ends[1])

    return sample
