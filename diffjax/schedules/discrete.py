"""Schedules over steps 0..T: DDPM's and those that followed it."""

import numpy as np

from diffjax.checks import checked
from diffjax.schedules.kinds import MAX_BETA, MAX_STEPS, DiscreteSchedule


def _check_steps(T: int) -> None:
    if T < 1:
        raise ValueError(f"a discrete schedule needs T >= 1 steps, not {T}")
    if T > MAX_STEPS:
        raise ValueError(f"a discrete schedule is a table: T may be {MAX_STEPS} at most, not {T}")


@checked
def from_beta(beta: np.ndarray) -> DiscreteSchedule:
    """The variance preserving table of a sequence of step variances.

    alpha_bar_t = prod_{s <= t} (1 - beta_s) (Ho et al. 2020, section 2), summed as logarithms.

    Args:
      beta: (T,) in (0, 1]: beta_1..beta_T.

    Raises:
      ValueError: beta that is no such vector.

    >>> import numpy as np, diffjax as dj
    >>> print(dj.schedules.from_beta(np.array([0.1, 0.2])).alpha_bar.round(2))  # 1, .9, .9 x .8
    [1.   0.9  0.72]
    """
    beta = np.asarray(beta, np.float64)
    if beta.ndim != 1 or len(beta) == 0 or not np.all((beta > 0) & (beta <= 1)):
        raise ValueError("beta must be a non-empty vector of values in (0, 1]")
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-beta))])
    return DiscreteSchedule(np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar)))


@checked
def from_alpha_bar(alpha_bar: np.ndarray, *, max_beta: float = MAX_BETA) -> DiscreteSchedule:
    """The table whose alpha_bar is given up to a bound on each step's beta.

    Args:
      alpha_bar: (T+1,) falling from alpha_bar_0 to alpha_bar_T; divided by alpha_bar_0.
      max_beta: beta_t = min(1 - alpha_bar_t / alpha_bar_{t-1}, max_beta); 1 changes nothing.

    Raises:
      ValueError: an alpha_bar that does not fall.

    >>> import numpy as np, diffjax as dj
    >>> print(dj.schedules.from_alpha_bar(np.array([1.0, 0.9, 0.72])).beta.round(2))
    [0.  0.1 0.2]
    """
    alpha_bar = np.asarray(alpha_bar, np.float64)
    return from_beta(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta))


def _beta_range(T: int, beta_start: float | None, beta_end: float | None) -> tuple[float, float]:
    # DDPM's end points belong to T = 1000; the same total noise in T steps needs 1000 / T of each.
    scale = 1000 / T
    return (
        min(1e-4 * scale, MAX_BETA) if beta_start is None else beta_start,
        min(2e-2 * scale, MAX_BETA) if beta_end is None else beta_end,
    )


def _from_end(start: float, end: float, T: int) -> np.ndarray:
    # Counted from the end, so that a single step is the noisiest one.
    return np.linspace(end, start, T)[::-1]


@checked
def linear_beta(
    T: int = 1000, *, beta_start: float | None = None, beta_end: float | None = None
) -> DiscreteSchedule:
    """DDPM's schedule: beta_t linear in t (Ho et al. 2020, section 4).

    Args:
      T: number of steps.
      beta_start, beta_end: beta_1 and beta_T; by default 1e-4 and 0.02 times 1000 / T, at most
        .999.

    Raises:
      ValueError: T out of [1, 1000000], or a beta out of (0, 1].

    >>> linear_beta(1000).beta[[1, -1]].round(6).tolist()
    [0.0001, 0.02]
    """
    _check_steps(T)
    start, end = _beta_range(T, beta_start, beta_end)
    return from_beta(_from_end(start, end, T))


@checked
def quadratic_beta(
    T: int = 1000, *, beta_start: float | None = None, beta_end: float | None = None
) -> DiscreteSchedule:
    """sqrt(beta_t) linear in t: "quad" in Ho et al. 2020's code.

    Stable Diffusion's "scaled_linear" (Rombach et al. 2022) with beta_start = 8.5e-4,
    beta_end = 0.012. Arguments as in `linear_beta`.

    Raises:
      ValueError: as `linear_beta`.

    >>> import diffjax as dj
    >>> sd = dj.schedules.quadratic_beta(beta_start=8.5e-4, beta_end=0.012)
    >>> print(sd.alpha_bar[-1].round(4))  # Stable Diffusion's x_T still has some signal
    0.0047
    """
    _check_steps(T)
    start, end = _beta_range(T, beta_start, beta_end)
    return from_beta(_from_end(start**0.5, end**0.5, T) ** 2)


@checked
def linear_alpha_bar(T: int = 1000, *, alpha_bar_end: float = 1e-4) -> DiscreteSchedule:
    """alpha_bar linear in t, from 1 to alpha_bar_end (Chen 2023, algorithm 1, "simple linear").

    With alpha_bar_end = 0 the last step is pure noise, which an eps or score network can't invert:
    use v, x0 or velocity.

    Args:
      T: number of steps.
      alpha_bar_end: alpha_bar_T, in [0, 1).

    Raises:
      ValueError: T out of [1, 1000000], or alpha_bar_end out of range.

    >>> import diffjax as dj
    >>> print(dj.schedules.linear_alpha_bar(4, alpha_bar_end=0.0).alpha_bar.round(3))
    [1.   0.75 0.5  0.25 0.  ]
    """
    _check_steps(T)
    if not 0 <= alpha_bar_end < 1:
        raise ValueError(f"alpha_bar_end must be in [0, 1), not {alpha_bar_end}")
    return from_alpha_bar(np.linspace(1.0, alpha_bar_end, T + 1), max_beta=1.0)


@checked
def cosine(T: int = 1000, *, offset: float = 0.008) -> DiscreteSchedule:
    """alpha_bar_t proportional to cos^2((t/T + offset) / (1 + offset) pi/2), beta <= .999.

    Nichol & Dhariwal 2021, equation 17.

    Args:
      T: number of steps.
      offset: s of the paper, at least 0: keeps the first steps from being too small.

    Raises:
      ValueError: T out of [1, 1000000], or an offset out of range.

    >>> import diffjax as dj
    >>> print(dj.schedules.cosine(1000, offset=0.0).alpha_bar[[0, 500]].round(3))  # cos^2(pi / 4)
    [1.  0.5]
    """
    _check_steps(T)
    if not 0 <= offset < np.inf:
        raise ValueError(f"offset must be a number >= 0, not {offset}")
    t = np.arange(T + 1) / T
    return from_alpha_bar(np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2)


@checked
def sigmoid(
    T: int = 1000, *, start: float = -3.0, end: float = 3.0, temperature: float = 1.0
) -> DiscreteSchedule:
    """alpha_bar a falling logistic curve between `start` and `end`, moved to run from 1 to 0.

    Jabri et al. 2022; Chen 2023, "On the importance of noise scheduling for diffusion models",
    algorithm 1. beta <= .999.

    Args:
      T: number of steps.
      start, end: where the logistic curve is cut, start < end.
      temperature: above 0; the curve is that of x / temperature.

    Raises:
      ValueError: T out of [1, 1000000], or a curve that is not such.

    >>> import diffjax as dj
    >>> print(dj.schedules.sigmoid(1000).alpha_bar[[0, 500]].round(3))  # half-way by symmetry
    [1.  0.5]
    """
    _check_steps(T)
    if not (start < end and temperature > 0):
        raise ValueError(
            f"sigmoid needs start < end and temperature > 0, not {start}, {end} and {temperature}"
        )
    curve = 1 / (1 + np.exp(-np.linspace(start, end, T + 1) / temperature))
    return from_alpha_bar((curve[-1] - curve) / (curve[-1] - curve[0]))


@checked
def zero_terminal_snr(schedule: DiscreteSchedule) -> DiscreteSchedule:
    """Shifts and scales sqrt(alpha_bar) so that x_T holds no signal and t = 1 stays as it was.

    Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", algorithm 1.
    An eps or score network can't be inverted at t = T: use v, x0 or velocity.

    Raises:
      ValueError: a schedule of one step, where t = 1 and t = T coincide.

    >>> import diffjax as dj
    >>> sd = dj.schedules.quadratic_beta(beta_start=8.5e-4, beta_end=0.012)
    >>> fixed = dj.schedules.zero_terminal_snr(sd)
    >>> print(fixed.signal_scale[-1], fixed.signal_scale[1] == sd.signal_scale[1])
    0.0 True
    """
    if schedule.T < 2:
        raise ValueError("zero_terminal_snr needs a schedule of at least 2 steps")
    first, last = schedule.signal_scale[1], schedule.signal_scale[-1]
    moved = (schedule.signal_scale[1:] - last) * (first / (first - last))
    signal = np.concatenate([[1.0], moved])
    return DiscreteSchedule(signal, np.sqrt((1 - signal) * (1 + signal)))
