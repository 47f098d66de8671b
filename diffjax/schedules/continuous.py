"""Schedules over times in [0, 1]: by their log-SNR, by the SDE, and straight paths."""

import dataclasses

import numpy as np

from diffjax.checks import checked
from diffjax.schedules.kinds import (
    ContinuousSchedule,
    namespace,
    straight,
    variance_exploding,
    variance_preserving,
)
from diffjax.types import Numbers


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

    Args:
      log_snr_min, log_snr_max: log-SNR at t = 1 and t = 0.

    Raises:
      ValueError: log_snr_min not below log_snr_max.

    >>> import numpy as np, diffjax as dj
    >>> signal, noise = dj.schedules.continuous_cosine()(np.array([0.0, 1 / 3]))
    >>> print(signal.round(2), noise.round(2))  # about cos and sin of pi t / 2
    [1.   0.87] [0.  0.5]
    """
    _check_range(log_snr_min, log_snr_max)
    b = float(np.arctan(np.exp(-log_snr_max / 2)))
    c = float(np.arctan(np.exp(log_snr_min / 2)))
    a = np.pi / 2 - b - c

    def log_snr(t: Numbers) -> Numbers:
        xp = namespace(t)
        # tan x = sin x / sin(pi/2 - x): both angles are small where float32 needs it.
        return 2 * (xp.log(xp.sin(a * (1 - t) + c)) - xp.log(xp.sin(a * t + b)))

    def time(log_snr: Numbers) -> Numbers:
        xp = namespace(log_snr)
        return (xp.arctan(xp.exp(-log_snr / 2)) - b) / a

    return ContinuousSchedule(log_snr, time, variance_preserving)


@checked
def linear_log_snr(*, log_snr_min: float = -10.0, log_snr_max: float = 13.3) -> ContinuousSchedule:
    """log_snr linear in t, variance preserving: VDM's start, before it learns the curve.

    VDM's code (Kingma et al. 2021) goes from 13.3 to -5; -10 is about where DDPM's alpha_bar ends.

    Args:
      log_snr_min, log_snr_max: log-SNR at t = 1 and t = 0.

    Raises:
      ValueError: log_snr_min not below log_snr_max.

    >>> import numpy as np, diffjax as dj
    >>> schedule = dj.schedules.linear_log_snr(log_snr_min=-10.0, log_snr_max=10.0)
    >>> print(schedule.log_snr(np.array([0.0, 0.25, 1.0])), schedule.time(np.array(5.0)))
    [ 10.   5. -10.] 0.25
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

    >>> import numpy as np, diffjax as dj
    >>> alpha_bar = dj.schedules.vp_sde()(np.array(1.0)).signal_scale ** 2
    >>> print(np.log(alpha_bar).round(3))  # -(beta_min + beta_max) / 2
    -10.05
    """
    if not 0 < beta_min <= beta_max < np.inf:
        raise ValueError(f"vp_sde needs 0 < beta_min <= beta_max, not {beta_min} and {beta_max}")
    rise = beta_max - beta_min

    def log_snr(t: Numbers) -> Numbers:
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return -xp.log(xp.expm1(t * (beta_min + t * (rise / 2))))

    def time(log_snr: Numbers) -> Numbers:
        xp = namespace(log_snr)
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

    >>> import numpy as np, diffjax as dj
    >>> print(dj.schedules.polynomial()(np.array([0.0, 0.5, 1.0])).signal_scale.round(3))  # 1 - t^2
    [1.   0.75 0.  ]
    """
    if not 0 < power < np.inf:
        raise ValueError(f"power must be a number above 0, not {power}")
    if not 0 < offset < 0.5:
        raise ValueError(f"offset must be in (0, 1/2), not {offset}")
    width = 1 - 2 * offset

    def log_snr(t: Numbers) -> Numbers:
        xp = namespace(t)
        fall = t**power
        signal, missing = offset + width * (1 - fall), offset + width * fall
        return 2 * xp.log(signal) - xp.log(missing) - xp.log1p(signal)  # noise^2: (1 - s)(1 + s)

    def time(log_snr: Numbers) -> Numbers:
        xp = namespace(log_snr)
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

    Args:
      sigma_min, sigma_max: the noise scale at t = 0 and t = 1.
      rho: above 0; larger gives more of [0, 1] to little noise.

    Raises:
      ValueError: not 0 < sigma_min < sigma_max, or rho not above 0.

    >>> import numpy as np, diffjax as dj
    >>> signal, sigma = dj.schedules.karras()(np.array([0.0, 0.5, 1.0]))
    >>> print(signal, sigma.round(3))
    [1. 1. 1.] [2.000e-03 2.515e+00 8.000e+01]
    """
    if not rho > 0:
        raise ValueError(f"rho must be above 0, not {rho}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"karras needs 0 < sigma_min < sigma_max, not {sigma_min}, {sigma_max}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def log_snr(t: Numbers) -> Numbers:
        xp = namespace(t)
        return -2 * rho * xp.log(low + t * (high - low))

    def time(log_snr: Numbers) -> Numbers:
        xp = namespace(log_snr)
        return (xp.exp(-log_snr / (2 * rho)) - low) / (high - low)

    return ContinuousSchedule(log_snr, time, variance_exploding)


@checked
def rectified_flow(*, t_min: float = 1e-3) -> ContinuousSchedule:
    """x_t = (1 - t) x_0 + t eps (Liu et al. 2023; Lipman et al. 2023).

    log_snr(t) = 2 log((1 - t) / t): infinite at both ends, where the pair is (1, 0) and (0, 1).

    Args:
      t_min: the smallest time at which a network is asked.

    Raises:
      ValueError: t_min out of [0, 1).

    >>> import numpy as np, diffjax as dj
    >>> signal, noise = dj.schedules.rectified_flow()(np.array([0.0, 0.25, 1.0]))
    >>> print(signal.round(3), noise.round(3))
    [1.   0.75 0.  ] [0.   0.25 1.  ]
    """

    def log_snr(t: Numbers) -> Numbers:
        xp = namespace(t)
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

    Args:
      schedule: of a base resolution.
      shift: added to log-SNR at every t; below 0 for more noise.

    Returns:
      A schedule of the same geometry, t_min and T.

    >>> import math, numpy as np, diffjax as dj
    >>> flow = dj.schedules.rectified_flow()  # of 64x64 images, and for 192x192:
    >>> large = dj.schedules.shift_log_snr(flow, 2 * math.log(64 / 192))
    >>> print(large(np.array(0.5)).noise_scale.round(3))  # s t / (1 + (s - 1) t) with s = 3
    0.75
    """
    return dataclasses.replace(
        schedule,
        log_snr=lambda t: schedule.log_snr(t) + shift,
        time=lambda log_snr: schedule.time(log_snr - shift),
    )
