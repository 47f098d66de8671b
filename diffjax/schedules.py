r"""Noise schedules: the pair (signal_scale, noise_scale) as a function of time.

Every process in diffjax has the Gaussian marginals

    q(x_t | x_0) = N(signal_scale(t) x_0, noise_scale(t)^2 I)                        (1)
    log_snr(t)   = log(signal_scale(t)^2 / noise_scale(t)^2)                         (2)

and a schedule is nothing but the map t -> (signal_scale, noise_scale). There are two kinds.

* `DiscreteSchedule`: a float64 table over t = 0..T. t = 0 is clean data (1, 0), t = T is noise.
  DDPM's step quantities follow from it: alpha_bar_t = signal_scale_t^2 and
  beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}.
* `ContinuousSchedule`: log_snr(t) for t in [0, 1], and a geometry that says which of the pairs with
  that ratio is meant:

    variance preserving   signal^2 + noise^2 = 1       (DDPM, VDM)                   (3)
    straight              signal + noise = 1           (rectified flow)              (4)
    variance exploding    signal = 1                   (NCSN, EDM)                   (5)

Both are called the same way, `signal_scale, noise_scale = schedule(t)`, with NumPy times in float64
(for tables made once on the host) or with JAX times in float32 (inside jit).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.checks import check_times, checked
from diffjax.types import ArrayLike, Numbers

MAX_STEPS = 1_000_000
MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: no singular step near t = T.


class Scales(NamedTuple, Generic[Numbers]):
    """The marginal pair of equation (1); both have the shape of t and are of its kind."""

    signal_scale: Numbers
    noise_scale: Numbers


@runtime_checkable
class Schedule(Protocol):
    """What losses, denoisers and sampling grids ask of a schedule.

    Attributes:
      T: the largest time, which is noise: the number of steps, or 1.0.
      t_min: the smallest time at which a network is asked: 1, or a float near 0.
      discrete: whether times are the integers 0..T.
    """

    @property
    def T(self) -> float: ...
    @property
    def t_min(self) -> float: ...
    @property
    def discrete(self) -> bool: ...
    def __call__(self, t: Numbers) -> Scales[Numbers]: ...
    def log_snr(self, t: Numbers) -> Numbers: ...
    def time(self, log_snr: Numbers) -> Numbers: ...


def _namespace(t: ArrayLike) -> Any:
    """NumPy for NumPy input and Python scalars (float64), jax.numpy for JAX input (float32)."""
    return jnp if isinstance(t, jax.Array) else np


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    """A table of T + 1 marginal pairs; entry 0 is clean data.

    Attributes:
      signal_scale: (T+1,) float64, starts at 1, falls.
      noise_scale: (T+1,) float64, starts at 0, rises; with signal_scale it keeps equation (3).

    Raises:
      ValueError: tables that are not such.

    A time between two steps is met by turning the angle atan2(noise_scale, signal_scale) evenly,
    which keeps equation (3) and is finite at both ends.
    """

    signal_scale: np.ndarray
    noise_scale: np.ndarray

    def __post_init__(self) -> None:
        if self.signal_scale.ndim != 1 or self.signal_scale.shape != self.noise_scale.shape:
            raise ValueError(
                f"signal_scale {self.signal_scale.shape} and noise_scale {self.noise_scale.shape} "
                "must be two tables of the same length, (T+1,)"
            )
        if len(self.signal_scale) < 2:
            raise ValueError("a discrete schedule needs at least one step after entry 0")
        if self.signal_scale[0] != 1 or self.noise_scale[0] != 0:
            raise ValueError("entry 0 of a discrete schedule is clean data: scales 1 and 0")
        # Written so that NaN is refused too; noise_scale may round to 1 at several steps.
        falls = np.all(np.diff(self.signal_scale) < 0)
        if not (falls and np.all(np.diff(self.noise_scale) >= 0)):
            raise ValueError("signal_scale must fall and noise_scale rise")
        if not np.allclose(self.signal_scale**2 + self.noise_scale**2, 1, rtol=0, atol=1e-6):
            raise ValueError(
                "a discrete schedule is variance preserving: signal_scale^2 + noise_scale^2 = 1"
            )

    @property
    def T(self) -> int:
        return len(self.signal_scale) - 1

    @property
    def t_min(self) -> int:
        return 1

    @property
    def discrete(self) -> bool:
        return True

    @property
    def alpha_bar(self) -> np.ndarray:
        """(T+1,) float64: DDPM's cumulative product, signal_scale^2."""
        return self.signal_scale**2

    @property
    def beta(self) -> np.ndarray:
        """(T+1,) float64: DDPM's beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}; beta_0 = 0."""
        with np.errstate(divide="ignore"):
            log_alpha_bar = 2 * np.log(self.signal_scale)
        return np.concatenate([[0.0], -np.expm1(np.diff(log_alpha_bar))])

    def __call__(self, t: Numbers) -> Scales[Numbers]:
        """The pair at t: integers 0..T exactly as tabled, floats in [0, T] between the steps.

        Raises:
          ValueError: a time out of [0, T]; a traced one is taken as the nearest of its ends.
        """
        check_times(t, self)
        xp = _namespace(t)
        times = xp.asarray(t)
        if xp.issubdtype(times.dtype, np.integer):
            if xp is jnp:  # a negative index would count from the end
                times = jnp.clip(times, 0, self.T)
            return Scales(xp.asarray(self.signal_scale)[times], xp.asarray(self.noise_scale)[times])
        # Each scale is a sine of an angle near 0 where it is small: exact in float32 at both ends.
        steps, angle = np.arange(self.T + 1.0), self._angle
        complement = np.arctan2(self.signal_scale, self.noise_scale)
        return Scales(
            xp.sin(xp.interp(times, xp.asarray(steps), xp.asarray(complement))),
            xp.sin(xp.interp(times, xp.asarray(steps), xp.asarray(angle))),
        )

    def log_snr(self, t: Numbers) -> Numbers:
        """Equation (2) at t; +inf at t = 0, -inf where the signal is zero."""
        return _log_snr(self(t))

    def time(self, log_snr: Numbers) -> Numbers:
        """The float time in [0, T] at which log_snr is reached: the inverse of `log_snr`."""
        xp = _namespace(log_snr)
        angle = xp.arctan(xp.exp(-log_snr / 2))
        return xp.interp(angle, xp.asarray(self._angle), xp.arange(self.T + 1.0))

    @property
    def _angle(self) -> np.ndarray:
        return np.arctan2(self.noise_scale, self.signal_scale)


@checked
def variance_preserving(log_snr: Numbers) -> Scales[Numbers]:
    """Equation (3): (sqrt(sigmoid(log_snr)), sqrt(sigmoid(-log_snr)))."""
    xp = _namespace(log_snr)
    return Scales(
        xp.exp(-xp.logaddexp(0.0, -log_snr) / 2),
        xp.exp(-xp.logaddexp(0.0, log_snr) / 2),
    )


@checked
def straight(log_snr: Numbers) -> Scales[Numbers]:
    """Equation (4): (sigmoid(log_snr / 2), sigmoid(-log_snr / 2))."""
    xp = _namespace(log_snr)
    return Scales(
        xp.exp(-xp.logaddexp(0.0, -log_snr / 2)),
        xp.exp(-xp.logaddexp(0.0, log_snr / 2)),
    )


@checked
def variance_exploding(log_snr: Numbers) -> Scales[Numbers]:
    """Equation (5): (1, exp(-log_snr / 2))."""
    xp = _namespace(log_snr)
    return Scales(xp.ones_like(log_snr), xp.exp(-log_snr / 2))


@dataclasses.dataclass(frozen=True, eq=False)
class ContinuousSchedule:
    """log_snr falling over t in [0, 1], and the geometry that turns it into a pair.

    Attributes:
      log_snr: t -> log-SNR, elementwise, for NumPy and JAX arrays alike.
      time: its inverse.
      geometry: log-SNR -> Scales: `variance_preserving`, `straight` or `variance_exploding`.
      t_min: the smallest time at which a network is asked; above 0 where log_snr(0) is infinite.
      T: the largest time; other than 1 only where time is another quantity, such as log-SNR.
    """

    # Numbers -> Numbers, which a Callable cannot express.
    log_snr: Callable[[Any], Any]
    time: Callable[[Any], Any]
    geometry: Callable[[Any], Scales]
    t_min: float = 0.0
    T: float = 1.0

    @property
    def discrete(self) -> bool:
        return False

    def __call__(self, t: Numbers) -> Scales[Numbers]:
        """The pair at t in [0, 1].

        Raises:
          ValueError: a time out of [0, 1]; for a traced one the formulas are taken as they are.
        """
        check_times(t, self)
        xp = _namespace(t)
        return self.geometry(self.log_snr(xp.asarray(t, dtype=float)))


def _log_snr(scales: Scales[Numbers]) -> Numbers:
    xp = _namespace(scales.signal_scale)
    with np.errstate(divide="ignore"):
        return 2 * (xp.log(scales.signal_scale) - xp.log(scales.noise_scale))


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
    """
    _check_steps(T)
    start, end = _beta_range(T, beta_start, beta_end)
    return from_beta(_from_end(start**0.5, end**0.5, T) ** 2)


@checked
def linear_alpha_bar(T: int = 1000, *, alpha_bar_end: float = 1e-4) -> DiscreteSchedule:
    """alpha_bar linear in t, from 1 to alpha_bar_end (Chen 2023, algorithm 1, "simple linear").

    With alpha_bar_end = 0 the last step is pure noise, which an eps or score network can't invert:
    use v, x0 or velocity.
    """
    _check_steps(T)
    if not 0 <= alpha_bar_end < 1:
        raise ValueError(f"alpha_bar_end must be in [0, 1), not {alpha_bar_end}")
    return from_alpha_bar(np.linspace(1.0, alpha_bar_end, T + 1), max_beta=1.0)


@checked
def cosine(T: int = 1000, *, offset: float = 0.008) -> DiscreteSchedule:
    """alpha_bar_t proportional to cos^2((t/T + offset) / (1 + offset) pi/2), beta <= .999.

    Nichol & Dhariwal 2021, equation 17.
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
    """
    if schedule.T < 2:
        raise ValueError("zero_terminal_snr needs a schedule of at least 2 steps")
    first, last = schedule.signal_scale[1], schedule.signal_scale[-1]
    moved = (schedule.signal_scale[1:] - last) * (first / (first - last))
    signal = np.concatenate([[1.0], moved])
    return DiscreteSchedule(signal, np.sqrt((1 - signal) * (1 + signal)))


def _check_range(log_snr_min: float, log_snr_max: float) -> None:
    if not log_snr_min < log_snr_max:
        raise ValueError(
            f"log_snr_min must be less than log_snr_max, not {log_snr_min} and {log_snr_max}"
        )


@checked
def continuous_cosine(
    *, log_snr_min: float = -15.0, log_snr_max: float = 15.0
) -> ContinuousSchedule:
    """log_snr(t) = -2 log tan(a t + b), variance preserving, cut at both ends.

    a and b make log_snr(0) = log_snr_max and log_snr(1) = log_snr_min (Hoogeboom et al. 2023,
    "simple diffusion", appendix; Salimans & Ho 2022, section 2).
    """
    _check_range(log_snr_min, log_snr_max)
    b = float(np.arctan(np.exp(-log_snr_max / 2)))
    c = float(np.arctan(np.exp(log_snr_min / 2)))
    a = np.pi / 2 - b - c

    def log_snr(t: Numbers) -> Numbers:
        xp = _namespace(t)
        # tan x = sin x / sin(pi/2 - x): both angles are small where float32 needs it.
        return 2 * (xp.log(xp.sin(a * (1 - t) + c)) - xp.log(xp.sin(a * t + b)))

    def time(log_snr: Numbers) -> Numbers:
        xp = _namespace(log_snr)
        return (xp.arctan(xp.exp(-log_snr / 2)) - b) / a

    return ContinuousSchedule(log_snr, time, variance_preserving)


@checked
def linear_log_snr(*, log_snr_min: float = -10.0, log_snr_max: float = 13.3) -> ContinuousSchedule:
    """log_snr linear in t, variance preserving: VDM's start, before it learns the curve.

    VDM's code (Kingma et al. 2021) goes from 13.3 to -5; -10 is about where DDPM's alpha_bar ends.
    """
    _check_range(log_snr_min, log_snr_max)
    return ContinuousSchedule(
        lambda t: log_snr_max + t * (log_snr_min - log_snr_max),
        lambda log_snr: (log_snr_max - log_snr) / (log_snr_max - log_snr_min),
        variance_preserving,
    )


@checked
def vp_sde(
    *, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3
) -> ContinuousSchedule:
    """The variance preserving SDE dx = -beta(t)/2 x dt + sqrt(beta(t)) dw, beta linear in t.

    alpha_bar(t) = exp(-B(t)) with B(t) = t beta_min + t^2 (beta_max - beta_min) / 2 (Song et al.
    2021b, equation 33 and appendix C): the limit of `linear_beta` for many steps.
    log_snr(t) = -log(exp(B) - 1) is infinite at t = 0.

    Args:
      beta_min, beta_max: beta at t = 0 and t = 1.
      t_min: the smallest time at which a network is asked; 1e-3 as in the paper's sampling.

    Raises:
      ValueError: not 0 < beta_min <= beta_max, or t_min out of [0, 1).
    """
    if not 0 < beta_min <= beta_max < np.inf:
        raise ValueError(f"vp_sde needs 0 < beta_min <= beta_max, not {beta_min} and {beta_max}")
    rise = beta_max - beta_min

    def log_snr(t: Numbers) -> Numbers:
        xp = _namespace(t)
        with np.errstate(divide="ignore"):
            return -xp.log(xp.expm1(t * (beta_min + t * (rise / 2))))

    def time(log_snr: Numbers) -> Numbers:
        xp = _namespace(log_snr)
        B = xp.logaddexp(0.0, -log_snr)
        # The root of a quadratic, in the form without a difference.
        return 2 * B / (beta_min + xp.sqrt(beta_min**2 + 2 * rise * B))

    return ContinuousSchedule(log_snr, time, variance_preserving, _in_unit(t_min, "t_min"))


@checked
def polynomial(*, power: float = 2.0, offset: float = 1e-5) -> ContinuousSchedule:
    """signal_scale(t) = (1 - 2 offset) (1 - t^power) + offset, variance preserving.

    Hoogeboom et al. 2022, "Equivariant diffusion for molecule generation in 3D", appendix B, with
    power 2. The offset keeps log-SNR finite at both ends.

    Args:
      power: above 0; larger keeps the signal for longer.
      offset: in (0, 1/2): the signal at t = 1, and what is missing of it at t = 0.

    Raises:
      ValueError: power or offset out of range.
    """
    if not 0 < power < np.inf:
        raise ValueError(f"power must be a number above 0, not {power}")
    if not 0 < offset < 0.5:
        raise ValueError(f"offset must be in (0, 1/2), not {offset}")
    width = 1 - 2 * offset

    def log_snr(t: Numbers) -> Numbers:
        xp = _namespace(t)
        fall = t**power
        signal, missing = offset + width * (1 - fall), offset + width * fall
        return 2 * xp.log(signal) - xp.log(missing) - xp.log1p(signal)  # noise^2: (1 - s)(1 + s)

    def time(log_snr: Numbers) -> Numbers:
        xp = _namespace(log_snr)
        missing = -xp.expm1(-xp.logaddexp(0.0, -log_snr) / 2)
        return xp.maximum((missing - offset) / width, 0.0) ** (1 / power)

    return ContinuousSchedule(log_snr, time, variance_preserving)


def _in_unit(value: float, name: str) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), not {value}")
    return value


@checked
def karras(
    *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> ContinuousSchedule:
    """sigma^(1/rho) linear in t, variance exploding (Karras et al. 2022, EDM, equation 5).

    Raises:
      ValueError: not 0 < sigma_min < sigma_max, or rho not above 0.
    """
    if not rho > 0:
        raise ValueError(f"rho must be above 0, not {rho}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"karras needs 0 < sigma_min < sigma_max, not {sigma_min}, {sigma_max}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def log_snr(t: Numbers) -> Numbers:
        xp = _namespace(t)
        return -2 * rho * xp.log(low + t * (high - low))

    def time(log_snr: Numbers) -> Numbers:
        xp = _namespace(log_snr)
        return (xp.exp(-log_snr / (2 * rho)) - low) / (high - low)

    return ContinuousSchedule(log_snr, time, variance_exploding)


@checked
def rectified_flow(*, t_min: float = 1e-3) -> ContinuousSchedule:
    """x_t = (1 - t) x_0 + t eps (Liu et al. 2023; Lipman et al. 2023).

    log_snr(t) = 2 log((1 - t) / t): infinite at both ends, where the pair is (1, 0) and (0, 1).

    Raises:
      ValueError: t_min out of [0, 1).
    """

    def log_snr(t: Numbers) -> Numbers:
        xp = _namespace(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log1p(-t) - xp.log(t))

    def time(log_snr: Numbers) -> Numbers:
        return straight(log_snr).noise_scale

    return ContinuousSchedule(log_snr, time, straight, _in_unit(t_min, "t_min"))


@checked
def shift_log_snr(schedule: ContinuousSchedule, shift: float) -> ContinuousSchedule:
    """Adds a constant to log_snr(t): e.g. for a change of resolution.

    Averaging k x k pixels divides the noise's variance by k^2, so the schedule of a base resolution
    d keeps its meaning at resolution D with shift = 2 log(d / D) (Hoogeboom et al. 2023, equation
    10). On a rectified flow it is t -> s t / (1 + (s - 1) t) with s = exp(-shift / 2) (Esser et al.
    2024, equation 23).
    """
    return dataclasses.replace(
        schedule,
        log_snr=lambda t: schedule.log_snr(t) + shift,
        time=lambda log_snr: schedule.time(log_snr - shift),
    )
