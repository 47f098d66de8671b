"""Sampling grids: which times a sampler visits, from noise to clean data.

A grid is made on the host in float64 and holds the marginal pair of every point, so a sampler's
coefficients are computed once, in float64, from the grid alone. Its last point is always clean
data, (1, 0): the last step of a sampler lands on the estimate of x_0, also on schedules whose noise
does not quite vanish at t = 0.
"""

from typing import NamedTuple

import numpy as np

from diffjax.schedules import Scales, Schedule


class Grid(NamedTuple):
    """N + 1 falling times; NumPy.

    Attributes:
      t: (N+1,) int64 (discrete schedules; float64 between the steps) or float64; t[-1] = 0. On a
        schedule with noise left at t = 0 (EDM's), t[-2] may be 0 as well.
      signal_scale, noise_scale: (N+1,) float64; the last are 1 and 0.
    """

    t: np.ndarray
    signal_scale: np.ndarray
    noise_scale: np.ndarray

    @property
    def scales(self) -> Scales:
        return Scales(self.signal_scale, self.noise_scale)

    @property
    def steps(self) -> int:
        """N, the number of sampling steps."""
        return len(self.t) - 1


def from_times(schedule: Schedule, times: np.ndarray) -> Grid:
    """The grid that visits `times` and then clean data.

    Args:
      schedule: the noise schedule.
      times: (N,) falling times in [t_min, T], without the final 0.

    Raises:
      ValueError: no times, times that do not fall, or out of range.
    """
    times = np.asarray(times)
    if times.ndim != 1 or len(times) == 0:
        raise ValueError(f"a grid needs a vector of at least one time, not shape {times.shape}")
    if not np.all(np.diff(times) < 0):
        raise ValueError("a grid's times must fall strictly, from noise to data")
    if times[0] > schedule.T or times[-1] < schedule.t_min:
        raise ValueError(
            f"a grid's times must lie in [{schedule.t_min}, {schedule.T}], "
            f"not in [{times[-1]}, {times[0]}]"
        )
    scales = schedule(times)
    return Grid(
        np.append(times, 0).astype(times.dtype),
        np.append(scales.signal_scale, 1.0),
        np.append(scales.noise_scale, 0.0),
    )


def _check_steps(schedule: Schedule, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step, not {steps}")
    if schedule.discrete and steps > schedule.T:
        raise ValueError(
            f"{steps} sampling steps on a schedule of {schedule.T}: take at most {schedule.T}"
        )


def _whole(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    return np.round(times).astype(np.int64) if schedule.discrete else times


def trailing(schedule: Schedule, steps: int) -> Grid:
    """T, T - T/N, ..., T/N, 0: even steps from pure noise (Lin et al. 2024, section 3.3)."""
    _check_steps(schedule, steps)
    # T N / N is T to the last bit; N (T / N) may not be, and log-SNR can be infinite at T.
    times = schedule.T * np.arange(steps, 0, -1) / steps
    return from_times(schedule, _whole(schedule, times))


def leading(schedule: Schedule, steps: int) -> Grid:
    """t_min + (N-1) d, ..., t_min + d, t_min, 0: DDIM's code; starts one stride d short of the end.

    d is floor(T / N) on a discrete schedule, as there, and (T - t_min) / N on a continuous one.
    """
    _check_steps(schedule, steps)
    stride = schedule.T // steps if schedule.discrete else (schedule.T - schedule.t_min) / steps
    return from_times(schedule, schedule.t_min + np.arange(steps - 1, -1, -1) * stride)


def linspace(schedule: Schedule, steps: int) -> Grid:
    """Even from T to t_min, both included, then 0."""
    _check_steps(schedule, steps)
    return from_times(schedule, _whole(schedule, np.linspace(schedule.T, schedule.t_min, steps)))


def karras(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """sigma^(1/rho) even from sigma_max to sigma_min, then 0; sigma = noise_scale / signal_scale.

    Karras et al. 2022, equation 5. On a discrete schedule the times lie between the steps.

    Args:
      schedule: the noise schedule.
      steps: N.
      rho: 7 in EDM; larger spends more steps at low noise.
      sigma_min, sigma_max: by default max(0.002, sigma at t_min) and min(80, sigma at T).

    Raises:
      ValueError: a range that is empty or that the schedule does not have.
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step, not {steps}")
    with np.errstate(over="ignore"):
        lowest, highest = np.exp(
            -schedule.log_snr(np.array([schedule.t_min, schedule.T], np.float64)) / 2
        )
    low = max(0.002, lowest) if sigma_min is None else sigma_min
    high = min(80.0, highest) if sigma_max is None else sigma_max
    slack = 1 + 1e-9
    if not (lowest <= low * slack and low < high and high <= highest * slack):
        raise ValueError(
            f"sigma_min {low:.4g} and sigma_max {high:.4g} must rise within the schedule's "
            f"[{lowest:.4g}, {highest:.4g}]"
        )
    even = np.linspace(high ** (1 / rho), low ** (1 / rho), steps)
    times = np.asarray(schedule.time(-2 * rho * np.log(even)))
    return from_times(schedule, np.clip(times, schedule.t_min, schedule.T))
