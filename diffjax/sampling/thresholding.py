"""Thresholding: the estimate of x_0 is kept where data can be.

Denoiser -> denoiser, with the eps that belongs to the new x_0, so it goes around guidance and under
any sampler.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.parametrisations import Estimates, eps_from_x0
from diffjax.process import scales_like
from diffjax.schedules import Schedule
from diffjax.types import Data, Times


@checked
def map_x0(denoise: Denoiser, schedule: Schedule, change: Callable[[Data], Data]) -> Denoiser:
    """The denoiser whose x_0 is change(x_0), with the eps that belongs to it.

    A learned variance stays as it is.

    Args:
      denoise: x_t, t, cond -> Estimates.
      schedule: its schedule.
      change: (B, ...) -> (B, ...).

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.5]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow)
    >>> pair = dj.thresholding.map_x0(denoise, flow, lambda x_0: x_0 + 1)(x_t, 0.5)
    >>> print(pair.x_0, pair.eps)  # and still x_t = 0.5 x_0 + 0.5 eps
    [[1.5]] [[-0.5]]
    """

    def changed(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        pair = denoise(x_t, t, cond)
        x_0 = change(pair.x_0)
        eps = eps_from_x0(x_t, x_0, scales_like(schedule, t, x_t))
        return pair._replace(x_0=x_0, eps=eps)

    return changed


@checked
def clip_x0(
    denoise: Denoiser, schedule: Schedule, *, low: float = -1.0, high: float = 1.0
) -> Denoiser:
    """Static thresholding: x_0 clipped to [low, high] (Ho et al. 2020's code).

    Args:
      denoise: x_t, t, cond -> Estimates.
      schedule: its schedule.
      low, high: the range of data.

    Raises:
      ValueError: low is not below high.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.5, -3.0]])
    >>> print(dj.clip_x0(dj.denoisers.gaussian_denoiser(flow), flow)(x_t, 0.5).x_0)
    [[ 0.5 -1. ]]
    """
    if not low < high:
        raise ValueError(f"clip_x0 needs low < high, not [{low}, {high}]")
    return map_x0(denoise, schedule, lambda x_0: jnp.clip(x_0, low, high))


@checked
def dynamic_threshold(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    percentile: float = 99.5,
    cap: float = float("inf"),
) -> Denoiser:
    """Dynamic thresholding: x_0 is clipped to [-s, s] and divided by s.

    s is each example's percentile of |x_0|, at least 1 (Saharia et al. 2022, Imagen, section 2.3)
    and at most `cap`, diffusers' `sample_max_value`: x_0 is not divided by more, which would turn
    an image grey.

    Args:
      denoise: a denoiser of data in [-1, 1].
      schedule: its schedule.
      percentile: in (0, 100].
      cap: the largest s, at least 1; 1 clips to [-1, 1].

    Raises:
      ValueError: percentile or cap out of range.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[1.0, -2.0], [0.5, -0.5]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow)  # x_0 is x_t at t = 0.5
    >>> print(dj.dynamic_threshold(denoise, flow, percentile=100)(x_t, 0.5).x_0)
    [[ 0.5 -1. ]
     [ 0.5 -0.5]]
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be in (0, 100], not {percentile}")
    if not cap >= 1:
        raise ValueError(f"cap must be at least 1, not {cap}")

    def threshold(x_0: Data) -> Data:
        axes = tuple(range(1, x_0.ndim))
        s = jnp.percentile(jnp.abs(x_0), percentile, axis=axes, keepdims=True)
        s = jnp.clip(s, 1.0, cap)
        return jnp.clip(x_0, -s, s) / s

    return map_x0(denoise, schedule, threshold)
