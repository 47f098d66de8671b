r"""Loss weightings: (schedule, t, target) -> the factor on the squared error of `target`.

A weighting is a statement about noise levels, so each is written once as a weight w on the squared
error of x_0, a function of the SNR, and divided by `gain(target)` (the factor between a squared
error in x_0 and in the target at the same x_t). So min-SNR is min(SNR, gamma) for x0,
min(SNR, gamma) / SNR for eps and min(SNR, gamma) / (SNR + 1) for v, without a table. Weight on x_0:

    uniform        gain(target): the plain squared error of whatever is predicted        (1)
    snr            SNR: the plain squared error of eps                                   (2)
    truncated_snr  max(SNR, 1)                                                           (3)
    min_snr        min(SNR, gamma)                                                       (4)
    p2             SNR / (k + SNR)^gamma                                                 (5)
    sigmoid        SNR sigmoid(bias - log SNR)                                           (6)
    edm            SNR + 1 / sigma_data^2                                                (7)
    vlb            -SNR'(t) / 2, or T (SNR_{t-1} - SNR_t) / 2                            (8)
    soft_min_snr   1 / (1 / SNR + 1 / gamma)                                             (9)
    logit_normal   density(u) / u^2,  u = noise / (signal + noise)                      (10)
    cosmap         2 / (pi (1 - 2 u + 2 u^2)) / u^2                                     (11)
    flow_velocity  1 / max(u, floor)^2                                                  (12)

(10) and (11) are densities over a flow's times as weights: 1 / u^2 is the gain of its velocity.
"""

import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from diffjax.checks import checked
from diffjax.parametrisations import Parametrisation, gain, velocity
from diffjax.process import smallest_variance
from diffjax.schedules import Scales, Schedule
from diffjax.types import PerExample, TimePerExample


@runtime_checkable
class Weighting(Protocol):
    """(schedule, t (B,), target) -> (B,) float32 weights >= 0."""

    def __call__(
        self, schedule: Schedule, t: TimePerExample, target: Parametrisation
    ) -> PerExample: ...


# Where the signal is zero, SNR / gain would be 0 / 0 for eps: its limit is taken at this scale.
_LEAST_SIGNAL = 1e-12


def _log_snr(schedule: Schedule, t: TimePerExample) -> PerExample:
    return jnp.maximum(schedule.log_snr(jnp.asarray(t)), 2 * math.log(_LEAST_SIGNAL))


def _snr(schedule: Schedule, t: TimePerExample) -> PerExample:
    return jnp.exp(_log_snr(schedule, t))


def _gain(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
    signal, noise = schedule(jnp.asarray(t))
    return gain(target, Scales(jnp.maximum(signal, _LEAST_SIGNAL), noise))


@checked
def uniform(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
    """Equation (1), "simple" in Ho et al. 2020, equation 14: 1 everywhere.

    Args:
      schedule: the noise schedule.
      t: (B,) times.
      target: the parametrisation whose squared error is weighted.

    Returns:
      (B,) float32 weights >= 0.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, t = dj.schedules.rectified_flow(), jnp.array([0.25, 0.5, 0.75])
    >>> print(dj.weightings.uniform(flow, t, dj.parametrisations.v))
    [1. 1. 1.]
    """
    del target
    return jnp.ones_like(schedule(jnp.asarray(t)).signal_scale)


@checked
def snr(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
    """Equation (2) (Salimans & Ho 2022, section 4).

    Args, results: as in `uniform`.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, t = dj.schedules.rectified_flow(), jnp.array([0.25, 0.5, 0.75])
    >>> for target in (dj.parametrisations.x0, dj.parametrisations.eps):  # SNR, and DDPM's loss
    ...     print(*(f"{weight:.2f}" for weight in dj.weightings.snr(flow, t, target)))
    9.00 1.00 0.11
    1.00 1.00 1.00
    """
    return _snr(schedule, t) / _gain(schedule, t, target)


@checked
def truncated_snr(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
    """Equation (3) (Salimans & Ho 2022, section 4).

    Args, results: as in `uniform`.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, t = dj.schedules.rectified_flow(), jnp.array([0.25, 0.5, 0.75])
    >>> print(dj.weightings.truncated_snr(flow, t, dj.parametrisations.x0).round(2))
    [9. 1. 1.]
    """
    return jnp.maximum(_snr(schedule, t), 1.0) / _gain(schedule, t, target)


@checked
def min_snr(gamma: float = 5.0) -> Weighting:
    """Equation (4) (Hang et al. 2023, equation 8).

    Args:
      gamma: the largest weight on x_0; 5 in the paper.

    Raises:
      ValueError: gamma not above 0.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, t = dj.schedules.rectified_flow(), jnp.array([0.25, 0.5, 0.75])
    >>> weights = dj.weightings.min_snr(5.0)(flow, t, dj.parametrisations.x0)
    >>> print(*(f"{weight:.2f}" for weight in weights))  # the SNR is 9, 1 and 1/9
    5.00 1.00 0.11
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, not {gamma}")

    def weight(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
        return jnp.minimum(_snr(schedule, t), gamma) / _gain(schedule, t, target)

    return weight


@checked
def soft_min_snr(gamma: float = 4.0) -> Weighting:
    """Equation (9): half the harmonic mean of SNR and gamma, a smooth `min_snr`.

    Crowson et al. 2024, "Scalable high-resolution pixel-space image synthesis with hourglass
    diffusion transformers", and k-diffusion, where gamma is 1 / sigma_data^2: 4 for EDM's 0.5.

    Args:
      gamma: the limit of the weight on x_0 for large SNR.

    Raises:
      ValueError: gamma not above 0.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, t = dj.schedules.rectified_flow(), jnp.array([0.25])
    >>> weights = dj.weightings.soft_min_snr(9.0)(flow, t, dj.parametrisations.x0)
    >>> print(f"{weights.item():.2f}")  # half of gamma where the SNR is gamma
    4.50
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, not {gamma}")

    def weight(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
        soft = jnp.exp(-jnp.logaddexp(-_log_snr(schedule, t), -math.log(gamma)))
        return soft / _gain(schedule, t, target)

    return weight


@checked
def p2(k: float = 1.0, gamma: float = 1.0) -> Weighting:
    """Equation (5) (Choi et al. 2022, equation 8, on the squared error of eps).

    Args:
      k, gamma: of the paper; gamma = 0 is `snr`.

    Raises:
      ValueError: k or gamma below 0.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, t = dj.schedules.rectified_flow(), jnp.array([0.25, 0.5, 0.75])
    >>> weights = dj.weightings.p2()(flow, t, dj.parametrisations.eps)
    >>> print(*(f"{weight:.2f}" for weight in weights))  # 1 / (1 + SNR): less where noise is small
    0.10 0.50 0.90
    """
    if not (k >= 0 and gamma >= 0):
        raise ValueError(f"k and gamma must be at least 0, not {k} and {gamma}")

    def weight(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
        ratio = _snr(schedule, t)
        return ratio / (k + ratio) ** gamma / _gain(schedule, t, target)

    return weight


@checked
def sigmoid(bias: float = -1.0) -> Weighting:
    """Equation (6) (Kingma & Gao 2023; Hoogeboom et al. 2024, on the squared error of eps).

    Args:
      bias: log-SNR at which the weight on eps has fallen to a half.

    >>> import math, jax.numpy as jnp, diffjax as dj
    >>> flow, t = dj.schedules.rectified_flow(), jnp.array([0.25, 0.5, 0.75])
    >>> weights = dj.weightings.sigmoid(bias=math.log(9.0))(flow, t, dj.parametrisations.eps)
    >>> print(*(f"{weight:.2f}" for weight in weights))  # a half at SNR 9
    0.50 0.90 0.99
    """

    def weight(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
        log_snr = _log_snr(schedule, t)
        return jnp.exp(log_snr) * jax.nn.sigmoid(bias - log_snr) / _gain(schedule, t, target)

    return weight


@checked
def edm(sigma_data: float = 0.5) -> Weighting:
    """Equation (7): (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, table 1).

    With `parametrisations.edm` of the same sigma_data it is the uniform weighting.

    Args:
      sigma_data: the data's standard deviation.

    Raises:
      ValueError: sigma_data not above 0.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> edm, t = dj.schedules.karras(), jnp.array([0.25, 0.5, 0.75])
    >>> weights = dj.weightings.edm(0.5)(edm, t, dj.parametrisations.edm(0.5))
    >>> print(*(f"{weight:.2f}" for weight in weights))
    1.00 1.00 1.00
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be above 0, not {sigma_data}")

    def weight(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
        return (_snr(schedule, t) + sigma_data**-2) / _gain(schedule, t, target)

    return weight


def _on_velocity(
    schedule: Schedule, t: TimePerExample, target: Parametrisation, density: PerExample
) -> PerExample:
    """`density` as the weight of the squared error of the velocity."""
    return density * _gain(schedule, t, velocity) / _gain(schedule, t, target)


@checked
def logit_normal(mean: float = 0.0, std: float = 1.0) -> Weighting:
    """Equation (10): the density of sigmoid(n), n ~ N(mean, std^2), on the velocity's error.

    On a rectified flow with uniform times it is the expected loss of
    `time_sampling.logit_normal` (Esser et al. 2024, Stable Diffusion 3, equations 18 and 19).

    Args:
      mean, std: of the normal variable.

    Raises:
      ValueError: std not above 0.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> flow, t = dj.schedules.rectified_flow(), jnp.linspace(0.005, 0.995, 100)
    >>> weigh, velocity = dj.weightings.logit_normal(), dj.parametrisations.velocity
    >>> weights = jax.jit(weigh, static_argnums=(0, 2))(flow, t, velocity)
    >>> print(f"{weights.mean():.2f} {jnp.argmax(weights) / 100:.2f}")  # a density, highest at 1/2
    1.00 0.49
    """
    if not std > 0:
        raise ValueError(f"std must be above 0, not {std}")

    def weight(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
        logit = -_log_snr(schedule, t) / 2  # of u
        # 1 / (u (1 - u)), the logit's slope, under the exponent: the density vanishes at both ends.
        log_slope = jax.nn.softplus(logit) + jax.nn.softplus(-logit)
        density = jnp.exp(log_slope + norm.logpdf(logit, mean, std))
        return _on_velocity(schedule, t, target, density)

    return weight


@checked
def cosmap(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
    """Equation (11): the density whose flow has the log-SNR of the cosine schedule.

    Esser et al. 2024, equation 21; `time_sampling.cosmap` as a weight, like `logit_normal`.

    Args, results: as in `uniform`.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> flow, t = dj.schedules.rectified_flow(), jnp.linspace(0.005, 0.995, 100)
    >>> velocity = dj.parametrisations.velocity
    >>> weights = jax.jit(dj.weightings.cosmap, static_argnums=(0, 2))(flow, t, velocity)
    >>> print(f"{weights.mean():.2f} {weights[0] / weights[50]:.1f}")  # a density; 1/2 at the ends
    1.00 0.5
    """
    signal, noise = schedule(jnp.asarray(t))
    # 1 - 2 u + 2 u^2 is (signal^2 + noise^2) / (signal + noise)^2.
    density = 2 / math.pi * (signal + noise) ** 2 / (signal**2 + noise**2)
    return _on_velocity(schedule, t, target, density)


@checked
def flow_velocity(floor: float = 0.05) -> Weighting:
    """Equation (12): the squared error of a flow's velocity, bounded near the data.

    Li & He 2025, "Back to basics: let denoising generative models denoise" (JiT), whose network
    predicts x_0 under the loss of v with 1 - t (here u) clipped at 0.05.

    Args:
      floor: the share of noise below which the weight no longer rises.

    Raises:
      ValueError: floor not in (0, 1).

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, t = dj.schedules.rectified_flow(), jnp.array([0.01, 0.5, 0.75])
    >>> weights = dj.weightings.flow_velocity(0.05)(flow, t, dj.parametrisations.velocity)
    >>> print(*(f"{weight:.2f}" for weight in weights))  # 1 but for (t / floor)^2 below the floor
    0.04 1.00 1.00
    """
    if not 0 < floor < 1:
        raise ValueError(f"floor must be in (0, 1), not {floor}")

    def weight(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
        signal, noise = schedule(jnp.asarray(t))
        u = noise / (signal + noise)
        return 1 / jnp.square(jnp.maximum(u, floor)) / _gain(schedule, t, target)

    return weight


@checked
def vlb(schedule: Schedule, t: TimePerExample, target: Parametrisation) -> PerExample:
    """Equation (8): with uniform t the loss is the variational bound's diffusion term, in nats.

    Kingma et al. 2021, VDM, equations 13 and 17. On a discrete schedule t = 1 stands for the
    reconstruction, where SNR_0 is infinite: a Gaussian decoder with variance beta-tilde_2, as in
    DDPM's fixed-small posterior, weighs x_0 by T / (2 beta-tilde_2).

    Args, results: as in `uniform`.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> schedule = dj.schedules.linear_log_snr(log_snr_min=-10.0, log_snr_max=10.0)
    >>> t = jnp.array([0.25, 0.5, 0.75])
    >>> weights = dj.weightings.vlb(schedule, t, dj.parametrisations.eps)
    >>> print(*(f"{weight:.1f}" for weight in weights))  # -d log SNR / dt / 2 at all times
    10.0 10.0 10.0
    """
    t = jnp.asarray(t)
    if schedule.discrete:
        before = jnp.where(t > 1, _snr(schedule, jnp.maximum(t - 1, 1)), 0.0)
        reconstruction = 1 / smallest_variance(schedule)
        fall = jnp.where(t > 1, before - _snr(schedule, t), reconstruction)
        return schedule.T / 2 * fall / _gain(schedule, t, target)
    _, slope = jax.jvp(lambda u: _snr(schedule, u), (t,), (jnp.ones_like(t),))
    return -slope / 2 / _gain(schedule, t, target)
