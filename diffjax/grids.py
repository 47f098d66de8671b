"""Sampling grids: which times a sampler visits, from noise to clean data.

A grid is made on the host in float64 and holds the marginal pair of every point, so a sampler's
coefficients are computed once, in float64, from the grid alone. Its last point is always clean
data, (1, 0): the last step of a sampler lands on the estimate of x_0, also on schedules whose noise
does not quite vanish at t = 0.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Real

from diffjax.checks import checked
from diffjax.schedules import Scales, Schedule


class Grid(NamedTuple):
    """N + 1 falling times; NumPy.

    Attributes:
      t: (N+1,) int64 (discrete schedules; float64 between the steps) or float64; t[-1] = 0. On a
        schedule with noise left at t = 0 (EDM's), t[-2] may be 0 as well.
      signal_scale, noise_scale: (N+1,) float64; the last are 1 and 0.

    >>> import diffjax as dj
    >>> grid = dj.grids.trailing(dj.schedules.rectified_flow(), 4)
    >>> print(grid.steps, grid.t, grid.noise_scale)  # a flow's noise is its time
    4 [1.   0.75 0.5  0.25 0.  ] [1.   0.75 0.5  0.25 0.  ]
    """

    t: Real[np.ndarray, " N+1"]
    signal_scale: Float64[np.ndarray, " N+1"]
    noise_scale: Float64[np.ndarray, " N+1"]

    @property
    def scales(self) -> Scales[np.ndarray]:
        return Scales(self.signal_scale, self.noise_scale)

    @property
    def steps(self) -> int:
        """N, the number of sampling steps."""
        return len(self.t) - 1


@checked
def from_times(schedule: Schedule, times: np.ndarray) -> Grid:
    """The grid that visits `times` and then clean data.

    Args:
      schedule: the noise schedule.
      times: (N,) falling times in [t_min, T], without the final 0.

    Raises:
      ValueError: no times, times that do not fall, or out of range.

    >>> import numpy as np, diffjax as dj
    >>> grid = dj.grids.from_times(dj.schedules.cosine(1000), np.array([1000, 400]))
    >>> print(grid.t, grid.signal_scale[-1], grid.noise_scale[-1])  # clean data last
    [1000  400    0] 1.0 0.0
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


@checked
def trailing(schedule: Schedule, steps: int, *, last: int = 0) -> Grid:
    """T, T - T/N, ..., T/N, 0: even steps from pure noise (Lin et al. 2024, section 3.3).

    Args:
      schedule: the noise schedule.
      steps: N.
      last: on a discrete schedule, the time of the grid's last point, with its noise; 0 is clean
        data, and 1 where DDIM's code ends with set_alpha_to_one = False, as for Stable Diffusion.

    Raises:
      ValueError: a bad number of steps, or a last time on a continuous schedule.

    >>> import diffjax as dj
    >>> print(dj.grids.trailing(dj.schedules.cosine(1000), 4).t)
    [1000  750  500  250    0]
    """
    _check_steps(schedule, steps)
    # T N / N is T to the last bit; N (T / N) may not be, and log-SNR can be infinite at T.
    times = schedule.T * np.arange(steps, 0, -1) / steps
    return _ending(schedule, _whole(schedule, times), last)


def _ending(schedule: Schedule, times: np.ndarray, last: int) -> Grid:
    """The grid of `times` and `last`; of the times alone if they end there."""
    if not last:
        return from_times(schedule, times)
    if not schedule.discrete:
        raise ValueError("a last time is of a discrete schedule: leave it at 0")
    times = times if times[-1] == last else np.append(times, last)
    return stop_before_clean(from_times(schedule, times))


@checked
def leading(schedule: Schedule, steps: int, *, offset: int = 0, last: int = 0) -> Grid:
    """t_min + (N-1) d, ..., t_min + d, t_min, 0: DDIM's code; starts one stride d short of the end.

    d is floor(T / N) on a discrete schedule, as there, and (T - t_min) / N on a continuous one.

    Args:
      schedule: the noise schedule.
      steps: N.
      offset: added to the times on a discrete schedule; 1 for Stable Diffusion.
      last: as in `trailing`.

    Raises:
      ValueError: a bad number of steps, times beyond T, or an offset or a last time on a continuous
        schedule.

    >>> import diffjax as dj
    >>> print(dj.grids.leading(dj.schedules.cosine(1000), 4).t)
    [751 501 251   1   0]
    """
    _check_steps(schedule, steps)
    if offset and not schedule.discrete:
        raise ValueError("an offset is of a discrete schedule: leave it at 0")
    stride = schedule.T // steps if schedule.discrete else (schedule.T - schedule.t_min) / steps
    times = schedule.t_min + np.arange(steps - 1, -1, -1) * stride
    return _ending(schedule, times + offset if offset else times, last)


@checked
def linspace(schedule: Schedule, steps: int, *, last: int = 0) -> Grid:
    """Even from T to t_min, both included, then 0.

    On a discrete schedule each time is rounded to the nearest step (halves to the even one), so the
    strides may differ by 1: T = 1000 has strides of 333 in 4 steps, but of 143 and 142 in 8.

    Args:
      schedule: the noise schedule.
      steps: N.
      last: as in `trailing`; 1 takes one step less, since t_min is 1.

    Raises:
      ValueError: as `trailing`.

    >>> import diffjax as dj
    >>> print(dj.grids.linspace(dj.schedules.cosine(1000), 4).t)
    [1000  667  334    1    0]
    """
    _check_steps(schedule, steps)
    times = _whole(schedule, np.linspace(schedule.T, schedule.t_min, steps))
    return _ending(schedule, times, last)


@checked
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
      ValueError: a range that is empty or that the schedule does not have; rho not above 0.

    >>> import diffjax as dj
    >>> grid = dj.grids.karras(dj.schedules.karras(), 18)  # EDM's sampling of CIFAR-10
    >>> print(grid.noise_scale[:4].round(2))  # signal is 1, so this is sigma
    [80.   57.59 40.79 28.37]
    """
    if not rho > 0:
        raise ValueError(f"rho must be above 0, not {rho}")
    low, high = _sigma_range(schedule, steps, sigma_min, sigma_max)
    even = np.linspace(high ** (1 / rho), low ** (1 / rho), steps)
    return _from_log_sigma(schedule, rho * np.log(even))


def _sigma_range(
    schedule: Schedule, steps: int, sigma_min: float | None, sigma_max: float | None
) -> tuple[float, float]:
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
    return low, high


def _from_log_sigma(schedule: Schedule, log_sigma: np.ndarray) -> Grid:
    times = np.asarray(schedule.time(-2 * log_sigma))
    return from_times(schedule, np.clip(times, schedule.t_min, schedule.T))


@checked
def exponential(
    schedule: Schedule,
    steps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """log sigma even from sigma_max to sigma_min, then 0: `karras` for rho to infinity.

    Even steps in log-SNR as well, DPM-Solver's choice (Lu et al. 2022a, section 3.4). Arguments and
    errors are those of `karras`.

    >>> import diffjax as dj
    >>> grid = dj.grids.exponential(dj.schedules.karras(), 3, sigma_min=0.5, sigma_max=50.0)
    >>> print(grid.noise_scale.round(2))  # each a tenth of the one before
    [50.   5.   0.5  0. ]
    """
    low, high = _sigma_range(schedule, steps, sigma_min, sigma_max)
    return _from_log_sigma(schedule, np.linspace(np.log(high), np.log(low), steps))


@checked
def polyexponential(
    schedule: Schedule,
    steps: int,
    *,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """log sigma = log sigma_min + r^rho log(sigma_max / sigma_min), r even from 1 to 0; then 0.

    k-diffusion's `get_sigmas_polyexponential` (Crowson 2022): `exponential` for rho = 1; larger
    spends more steps at low noise.

    Args:
      schedule, steps, sigma_min, sigma_max: as in `karras`.
      rho: above 0.

    Raises:
      ValueError: as `karras`.

    >>> import diffjax as dj
    >>> grid = dj.grids.polyexponential(
    ...     dj.schedules.karras(), 3, rho=2.0, sigma_min=1.0, sigma_max=16.0
    ... )
    >>> print(grid.noise_scale.round(2))  # 16^1, 16^(1/4), 16^0
    [16.  2.  1.  0.]
    """
    if not rho > 0:
        raise ValueError(f"rho must be above 0, not {rho}")
    low, high = _sigma_range(schedule, steps, sigma_min, sigma_max)
    ramp = np.linspace(1, 0, steps) ** rho
    return _from_log_sigma(schedule, np.log(low) + ramp * np.log(high / low))


@checked
def sections(
    schedule: Schedule, steps: int, *, counts: str | tuple[int, ...] | None = None
) -> Grid:
    """The steps 1..T in sections of equal size, each with a number of times of its own.

    Nichol & Dhariwal 2021's code (`space_timesteps`): within a section the times are even, from its
    first to its last step, rounded; the first T mod n of n sections are one step longer.

    Args:
      schedule: a discrete schedule.
      steps: N, the sum of the counts.
      counts: times of each section, from data to noise: (10, 10, 15), or as text "10,10,15"; or
        "ddim25", the multiples of the whole stride that gives 25 times, like DDIM's code. One
        section by default.

    Raises:
      ValueError: a continuous schedule, counts that are no such text, do not sum to N or do not fit
        their section, or no whole stride for "ddim".

    >>> import diffjax as dj
    >>> print(dj.grids.sections(dj.schedules.cosine(100), 6, counts=(4, 2)).t)  # 1..50, 51..100
    [100  51  50  34  17   1   0]
    """
    _check_steps(schedule, steps)
    if not schedule.discrete:
        raise ValueError("sections are of a discrete schedule's steps: take another grid")
    parts, ddim = _counts(counts, steps)
    if sum(parts) != steps:
        raise ValueError(f"counts {counts!r} sum to {sum(parts)}, but the grid has {steps} steps")
    T = int(schedule.T)
    if ddim:
        whole = [d for d in range(1, T + 1) if len(range(0, T, d)) == steps]
        if not whole:
            raise ValueError(f"counts {counts!r}: no whole stride through {T} gives {steps} times")
        return from_times(schedule, 1 + np.arange(0, T, whole[0])[::-1])
    times: list[np.ndarray] = []
    start = 1
    for i, count in enumerate(parts):
        size = T // len(parts) + (i < T % len(parts))
        if count > size:
            raise ValueError(f"counts {counts!r}: a section of {size} steps has no {count} times")
        # A stride that is added up, as in that code, so that halves are rounded as there.
        strides = np.full(count - 1, (size - 1) / max(count - 1, 1))
        places = np.concatenate([[0.0], np.cumsum(strides)])
        times.append(start + np.round(places).astype(np.int64))
        start += size
    return from_times(schedule, np.concatenate(times)[::-1])


def _counts(counts: str | tuple[int, ...] | None, steps: int) -> tuple[tuple[int, ...], bool]:
    """The times of each section, and whether they are DDIM's."""
    found, ddim = (steps,) if counts is None else counts, False
    if isinstance(found, str):
        ddim = found.startswith("ddim")
        texts = found.removeprefix("ddim").split(",")
        whole = all(text.strip().isdecimal() for text in texts) and not (ddim and len(texts) > 1)
        found = tuple(int(text) for text in texts) if whole else ()
    if (
        not isinstance(found, tuple | list)
        or not found
        or not all(
            isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 1 for n in found
        )
    ):
        raise ValueError(
            f"counts must be whole numbers >= 1, like (10, 10, 15), '10,10,15' or 'ddim25', not "
            f"{counts!r}"
        )
    return tuple(found), ddim


@checked
def uniform_log_snr(schedule: Schedule, steps: int) -> Grid:
    """log-SNR even over what the schedule has of [-20, 20], from T, then 0.

    Lu et al. 2022a, section 3.4: even steps of log(signal / noise), which is half of it.

    Args:
      schedule: the noise schedule.
      steps: N.

    Raises:
      ValueError: a bad number of steps.

    >>> import diffjax as dj
    >>> schedule = dj.schedules.linear_log_snr(log_snr_min=-6.0, log_snr_max=6.0)
    >>> grid = dj.grids.uniform_log_snr(schedule, 4)
    >>> print(schedule.log_snr(grid.t[:-1]).round(2))
    [-6. -2.  2.  6.]
    """
    _check_steps(schedule, steps)
    with np.errstate(divide="ignore"):
        ends = schedule.log_snr(np.array([schedule.T, schedule.t_min], np.float64))
    low, high = (float(end) for end in np.clip(ends, -20.0, 20.0))
    times = np.array(schedule.time(np.linspace(low, high, steps)))
    times[0] = schedule.T
    return from_times(schedule, np.clip(times, schedule.t_min, schedule.T))


@checked
def beta(schedule: Schedule, steps: int, *, a: float = 0.6, b: float = 0.6) -> Grid:
    """Quantiles of a Beta(a, b) distribution of times: more of them near both ends.

    Lee et al. 2024, "Beta sampling is all you need", section 3; on a discrete schedule the times
    lie between the steps.

    Args:
      schedule: the noise schedule.
      steps: N.
      a, b: below 1, the smaller the more times near 0 (a) and near T (b).

    Raises:
      ValueError: a or b not positive, or a bad number of steps.

    >>> import diffjax as dj
    >>> grid = dj.grids.beta(dj.schedules.rectified_flow(), 5, a=0.5, b=0.5)
    >>> print(grid.t.round(2))  # the arcsine law's quantiles, sin^2(pi r / 2)
    [1.   0.85 0.5  0.15 0.   0.  ]
    """
    _check_steps(schedule, steps)
    if a <= 0 or b <= 0:
        raise ValueError(f"a and b must be positive, not {a} and {b}")
    from scipy.special import betaincinv  # scipy comes with jax; only this grid waits for it

    shares = betaincinv(a, b, np.linspace(1.0, 0.0, steps) if steps > 1 else np.ones(1))
    return from_times(schedule, schedule.t_min + (schedule.T - schedule.t_min) * shares)


@checked
def flow_shift(schedule: Schedule, steps: int, *, shift: float = 3.0) -> Grid:
    """`trailing`, with every time moved towards noise: s t / (1 + (s - 1) t), t as a share of T.

    Esser et al. 2024, "Scaling rectified flow transformers", equation 23.

    Args:
      schedule: the noise schedule, a flow's.
      steps: N.
      shift: s; 1 leaves the times as they are.

    Raises:
      ValueError: a shift that is not positive, or a bad number of steps.

    >>> import diffjax as dj
    >>> grid = dj.grids.flow_shift(dj.schedules.rectified_flow(), 4, shift=3.0)
    >>> print((grid.noise_scale[1:] / grid.signal_scale[1:]).round(2))  # 3 times 3, 1, 1/3, 0
    [9. 3. 1. 0.]
    """
    _check_steps(schedule, steps)
    if shift <= 0:
        raise ValueError(f"shift must be positive, not {shift}")
    share = np.arange(steps, 0, -1) / steps
    return from_times(schedule, schedule.T * shift * share / (1 + (shift - 1) * share))


@checked
def at(
    schedule: Schedule,
    steps: int,
    *,
    times: tuple[float, ...] = (),
    sigmas: tuple[float, ...] = (),
) -> Grid:
    """The given times, or those of given sigma = noise_scale / signal_scale; then 0.

    For models of few steps, whose times are chosen one by one: ECT's two steps are at sigmas
    (80, 0.821) (Geng et al. 2024).

    Args:
      schedule: the noise schedule.
      steps: N, the number of times or sigmas.
      times, sigmas: one of them, falling. Whole times are kept whole on a discrete schedule.

    Raises:
      ValueError: both or none, another number than N, or what the schedule does not have.

    >>> import diffjax as dj
    >>> grid = dj.grids.at(dj.schedules.karras(), 2, sigmas=(80.0, 0.821))
    >>> print(grid.noise_scale.round(3))
    [80.     0.821  0.   ]
    """
    if bool(times) == bool(sigmas):
        raise ValueError("give one of times and sigmas, such as sigmas=(80.0, 0.821)")
    given = np.asarray(times or sigmas, np.float64)
    if len(given) != steps:
        raise ValueError(f"{len(given)} times or sigmas were given for {steps} steps")
    if sigmas:
        if not (given > 0).all():
            raise ValueError(f"sigmas must be above 0, not {sigmas}")
        return _from_log_sigma(schedule, np.log(given))
    whole = schedule.discrete and np.all(given == np.round(given))
    return from_times(schedule, given.astype(np.int64) if whole else given)


@checked
def with_stages(
    schedule: Schedule,
    grid: Grid,
    *,
    fractions: tuple[float, ...] = (0.5,),
    even_in: str = "lambda",
) -> Grid:
    """The grid with points between its own, for singlestep solvers: one solver step a step.

    Args:
      schedule: the grid's.
      grid: N steps. Those with infinite log-SNR at an end stay whole with "lambda"; so does a step
        to clean data that would need a stage below the schedule's t_min, with "u".
      fractions: where the points lie within a step, rising in (0, 1): (1/2,) for the solvers of
        order 2, (1/3, 2/3) for `dpm_solver_3`.
      even_in: "lambda", log(signal / noise), as in DPM-Solver; or "u", noise / (signal + noise), as
        `midpoint` and `rk4` want it.

    Raises:
      ValueError: fractions that do not rise within (0, 1), or another variable.

    >>> import diffjax as dj
    >>> flow = dj.schedules.rectified_flow()
    >>> grid = dj.grids.with_stages(flow, dj.grids.trailing(flow, 2), even_in="u")
    >>> print(grid.t.round(3))
    [1.   0.75 0.5  0.25 0.  ]
    """
    if not fractions or not np.all(np.diff([0.0, *fractions, 1.0]) > 0):
        raise ValueError(f"fractions must rise within (0, 1), not {fractions}")
    if even_in not in ("lambda", "u"):
        raise ValueError(f'even_in must be "lambda" or "u", not {even_in!r}')
    with np.errstate(divide="ignore"):
        lam = np.log(grid.signal_scale) - np.log(grid.noise_scale)
    u = grid.noise_scale / (grid.signal_scale + grid.noise_scale)
    times: list[float] = []
    for n in range(grid.steps):
        times.append(float(grid.t[n]))
        place = lam if even_in == "lambda" else u
        if not np.isfinite(place[n : n + 2]).all():
            continue
        between = place[n] + np.array(fractions) * (place[n + 1] - place[n])
        log_snr = 2 * between if even_in == "lambda" else 2 * np.log((1 - between) / between)
        stages = np.asarray(schedule.time(log_snr))
        if stages[-1] >= schedule.t_min:
            times += [float(t) for t in stages]
    if grid.noise_scale[-1] == 0:
        return from_times(schedule, np.array(times))
    return stop_before_clean(from_times(schedule, np.array([*times, float(grid.t[-1])])))


@checked
def stop_before_clean(grid: Grid) -> Grid:
    """The grid without its step to clean data: samplers end at its last time, with noise left.

    Args:
      grid: N steps, N >= 2, the last of them to clean data.

    Raises:
      ValueError: the grid has no other step.

    >>> import diffjax as dj
    >>> grid = dj.grids.trailing(dj.schedules.cosine(1000), 4)
    >>> print(dj.grids.stop_before_clean(grid).t)
    [1000  750  500  250]
    """
    if grid.steps < 2 or grid.noise_scale[-1] > 0:
        raise ValueError("a grid of one step, or one that ends with noise, can't stop earlier")
    return Grid(*(column[:-1] for column in grid))
