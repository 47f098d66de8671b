"""What a schedule is: a table over steps, or a function of continuous time."""

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


def namespace(t: ArrayLike) -> Any:
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

    >>> import numpy as np, diffjax as dj
    >>> signal = np.array([1.0, 0.8, 0.0])
    >>> schedule = dj.schedules.DiscreteSchedule(signal, np.sqrt(1 - signal**2))
    >>> print(schedule.T, schedule(np.array([0, 1, 2])).noise_scale.round(3))
    2 [0.  0.6 1. ]
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
        xp = namespace(t)
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
        xp = namespace(log_snr)
        angle = xp.arctan(xp.exp(-log_snr / 2))
        return xp.interp(angle, xp.asarray(self._angle), xp.arange(self.T + 1.0))

    @property
    def _angle(self) -> np.ndarray:
        return np.arctan2(self.noise_scale, self.signal_scale)


@checked
def variance_preserving(log_snr: Numbers) -> Scales[Numbers]:
    """Equation (3): (sqrt(sigmoid(log_snr)), sqrt(sigmoid(-log_snr))).

    Args:
      log_snr: of any shape, infinite values included.

    Returns:
      The pair, of log_snr's shape and kind: NumPy for NumPy, JAX for JAX.

    >>> import numpy as np, diffjax as dj
    >>> signal, noise = dj.schedules.variance_preserving(np.log(np.array(9.0)))
    >>> print((signal**2).round(3), (noise**2).round(3))
    0.9 0.1
    """
    xp = namespace(log_snr)
    return Scales(
        xp.exp(-xp.logaddexp(0.0, -log_snr) / 2),
        xp.exp(-xp.logaddexp(0.0, log_snr) / 2),
    )


@checked
def straight(log_snr: Numbers) -> Scales[Numbers]:
    """Equation (4): (sigmoid(log_snr / 2), sigmoid(-log_snr / 2)).

    Args:
      log_snr: as in `variance_preserving`.

    >>> import numpy as np, diffjax as dj
    >>> signal, noise = dj.schedules.straight(np.log(np.array(9.0)))
    >>> print(signal.round(3), noise.round(3))
    0.75 0.25
    """
    xp = namespace(log_snr)
    return Scales(
        xp.exp(-xp.logaddexp(0.0, -log_snr / 2)),
        xp.exp(-xp.logaddexp(0.0, log_snr / 2)),
    )


@checked
def variance_exploding(log_snr: Numbers) -> Scales[Numbers]:
    """Equation (5): (1, exp(-log_snr / 2)).

    Args:
      log_snr: as in `variance_preserving`, above -inf.

    >>> import numpy as np, diffjax as dj
    >>> signal, noise = dj.schedules.variance_exploding(np.log(np.array(4.0)))
    >>> print(signal, noise.round(3))
    1.0 0.5
    """
    xp = namespace(log_snr)
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

    >>> import numpy as np, diffjax as dj
    >>> even = dj.schedules.ContinuousSchedule(
    ...     log_snr=lambda t: 8 - 16 * t,
    ...     time=lambda log_snr: (8 - log_snr) / 16,
    ...     geometry=dj.schedules.straight,
    ... )
    >>> print(*even(np.array(0.5)))  # log-SNR 0
    0.5 0.5
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
        xp = namespace(t)
        return self.geometry(self.log_snr(xp.asarray(t, dtype=float)))


def _log_snr(scales: Scales[Numbers]) -> Numbers:
    xp = namespace(scales.signal_scale)
    with np.errstate(divide="ignore"):
        return 2 * (xp.log(scales.signal_scale) - xp.log(scales.noise_scale))
