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
    """Independent uniform times (Ho et al. 2020, algorithm 1)."""
    del batch_size
    return _level_to_time(rng.per_example(key, indices, jax.random.uniform), schedule)


@checked
def low_discrepancy(
    key: PRNGKey, schedule: Schedule, *, indices: Indices, batch_size: int
) -> TimePerExample:
    """Stratified times u_i = (u_0 + i / batch_size) mod 1 with one uniform u_0 for the batch.

    Each t_i is uniform and the batch covers the range evenly, which lowers the variance of the
    batch's loss (Kingma et al. 2021, VDM, appendix I.1).
    """
    u = (jax.random.uniform(key) + indices / batch_size) % 1.0
    return _level_to_time(u, schedule)


def _check_std(std: float) -> None:
    if not std > 0:
        raise ValueError(f"std must be above 0, not {std}")


@checked
def logit_normal(*, mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """t = sigmoid(n), n ~ N(mean, std^2) (Esser et al. 2024, Stable Diffusion 3, equation 19).

    Raises:
      ValueError: std not above 0.
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

    Raises:
      ValueError: std not above 0.
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
