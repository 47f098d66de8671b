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

from diffjax.schedules.continuous import (
    continuous_cosine,
    karras,
    linear_log_snr,
    polynomial,
    rectified_flow,
    shift_log_snr,
    vp_sde,
)
from diffjax.schedules.discrete import (
    cosine,
    from_alpha_bar,
    from_beta,
    linear_alpha_bar,
    linear_beta,
    quadratic_beta,
    sigmoid,
    zero_terminal_snr,
)
from diffjax.schedules.kinds import (
    MAX_BETA,
    MAX_STEPS,
    ContinuousSchedule,
    DiscreteSchedule,
    Scales,
    Schedule,
    straight,
    variance_exploding,
    variance_preserving,
)

__all__ = [
    "MAX_BETA",
    "MAX_STEPS",
    "ContinuousSchedule",
    "DiscreteSchedule",
    "Scales",
    "Schedule",
    "continuous_cosine",
    "cosine",
    "from_alpha_bar",
    "from_beta",
    "karras",
    "linear_alpha_bar",
    "linear_beta",
    "linear_log_snr",
    "polynomial",
    "quadratic_beta",
    "rectified_flow",
    "shift_log_snr",
    "sigmoid",
    "straight",
    "variance_exploding",
    "variance_preserving",
    "vp_sde",
    "zero_terminal_snr",
]
