"""Classifier-free guidance that changes the two estimates, or their difference, by a projection."""

from typing import Any

import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.parametrisations import Estimates, velocity
from diffjax.process import scales_like
from diffjax.sampling import memory
from diffjax.sampling.guidance.common import (
    Null,
    Scale,
    needs_condition,
    no_label,
    one_scale,
    scale_at,
    together,
    with_x0,
)
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, Times


def _dot(a: Data, b: Data) -> Array:
    """Each example's inner product, shaped to multiply it."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdims=True)


@checked
def adaptive_projected(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    null: Null = no_label,
    scale: Scale | None = None,
    papers_scale: float | None = None,
    parallel: float = 0.0,
    norm_limit: float = float("inf"),
    momentum: float = 0.0,
) -> Denoiser:
    """Adaptive projected guidance: what saturates colours is left out of the difference.

    Sadat et al. 2024, "Eliminating oversaturation and artifacts of high guidance scales", algorithm
    1: the difference of the two x_0, plus `momentum` times the sum of the steps before, is cut to a
    norm, and its part along the conditional x_0 is weighed by `parallel`.

    Args:
      denoise, schedule, null, scale, papers_scale: as in `classifier_free`.
      parallel: eta; 1 with no limit is `classifier_free`.
      norm_limit: r, the largest norm of an example's difference.
      momentum: beta in (-1, 1), e.g. -0.5 ("reverse momentum", section 4.3); other than 0 it needs
        a sampler of `memory.carried`.

    Raises:
      ValueError: both scales or none, a limit that is not positive, momentum out of range; when
        called, no condition, or momentum and a sampler without memory.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t, label = dj.schedules.rectified_flow(), jnp.array([[1.0, 0.0]]), jnp.array([3])
    >>> without = lambda cond: jnp.where(cond < 0, 1.0, 0.0)[:, None]
    >>> denoise = lambda x_t, t, cond: dj.Estimates(x_t - without(cond), x_t + without(cond))
    >>> for parallel in (1.0, 0.0):  # as classifier_free, and without what is along x_0 = (1, 0)
    ...     guide = dj.guidance.adaptive_projected(denoise, flow, scale=3.0, parallel=parallel)
    ...     print(guide(x_t, 0.5, label).x_0)
    [[3. 2.]]
    [[1. 2.]]
    """
    scale = one_scale(scale, papers_scale)
    if not norm_limit > 0:
        raise ValueError(f"norm_limit must be positive, not {norm_limit}")
    if not -1 < momentum < 1:
        raise ValueError(f"momentum must be in (-1, 1), not {momentum}")
    average = memory.Slot()

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        needs_condition(cond, "adaptive projected guidance")
        positive, negative = together(denoise, x_t, t, (cond, null(cond)))
        change = positive.x_0 - negative.x_0
        if momentum:
            change = change + momentum * average.read(change)
            average.write(change)
        length = jnp.sqrt(jnp.maximum(_dot(change, change), 1e-24))
        change = change * jnp.minimum(1.0, norm_limit / length)
        squared = jnp.maximum(_dot(positive.x_0, positive.x_0), 1e-24)
        along = _dot(change, positive.x_0) / squared * positive.x_0
        x_0 = positive.x_0 + (scale_at(scale, t, x_t) - 1) * (change - (1 - parallel) * along)
        return with_x0(positive, x_0, x_t, t, schedule)

    return guided


@checked
def tangential(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    null: Null = no_label,
    scale: Scale | None = None,
    papers_scale: float | None = None,
) -> Denoiser:
    """Tangential damping: the unconditional score keeps what it shares with the conditional one.

    Kwon et al. 2025, "TCFG: Tangential damping classifier-free guidance", section 4: of the matrix
    of both scores (c, u) of an example, u is projected on the first right singular vector, and the
    rest is `classifier_free`. That vector is a c + b u with (a, b) the first eigenvector of the
    2x2 matrix of inner products, so no decomposition of an image is needed.

    Args:
      denoise, schedule, null, scale, papers_scale: as in `classifier_free`.

    Raises:
      ValueError: both scales or none; when called, no condition.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t, label = dj.schedules.rectified_flow(), jnp.array([[0.5, -0.5]]), jnp.array([3])
    >>> mean = lambda cond: jnp.where(cond < 0, 0.0, 1.0)[:, None]
    >>> denoise = lambda x_t, t, cond: dj.denoisers.gaussian_denoiser(flow, mean=mean(cond))(x_t, t)
    >>> pair = dj.guidance.tangential(denoise, flow, scale=1.0)(x_t, 0.5, label)
    >>> print((pair.x_0 - denoise(x_t, 0.5, label).x_0).round(2) + 0.0)  # 1 is no guidance
    [[0. 0.]]
    """
    scale = one_scale(scale, papers_scale)

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        needs_condition(cond, "tangential guidance")
        positive, negative = together(denoise, x_t, t, (cond, null(cond)))
        c, u = positive.eps, negative.eps  # the scores up to a factor
        cc, cu, uu = _dot(c, c), _dot(c, u), _dot(u, u)
        root = jnp.maximum(jnp.hypot(2 * cu, cc - uu), 1e-24)
        ab, bb = cu / root, (1 - (cc - uu) / root) / 2  # by the angle of the eigenvector, doubled
        damped = ab * c + bb * u
        eps = damped + scale_at(scale, t, x_t) * (c - damped)
        # A network may say anything of x_0 where there is no signal: the difference is left out.
        signal, noise = scales_like(schedule, t, x_t)
        safe = jnp.where(signal > 0, signal, 1.0)
        x_0 = jnp.where(signal > 0, positive.x_0 - noise / safe * (eps - c), positive.x_0)
        return positive._replace(x_0=x_0, eps=jnp.where(signal > 0, eps, c))

    return guided


@checked
def cfg_zero_star(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    null: Null = no_label,
    scale: Scale | None = None,
    papers_scale: float | None = None,
    zero_steps: int = 1,
) -> Denoiser:
    """CFG-Zero*: the unconditional velocity is scaled to fit, and the first steps are zero.

    Fan et al. 2025, "CFG-Zero*: Improved classifier-free guidance for flow matching models",
    algorithm 1: s u + w (c - s u) of the velocities c and u, with s = <c, u> / |u|^2 of each
    example, and 0 in the first `zero_steps` steps, where x / (signal + noise) stays as it is.

    Args:
      denoise, schedule, null, scale, papers_scale: as in `classifier_free`; of a flow.
      zero_steps: K; other than 0 it needs a sampler of `memory.carried`.

    Raises:
      ValueError: both scales or none, zero_steps that is no whole number of at least 0; when
        called, no condition, or zero_steps and a sampler without memory.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t, label = dj.schedules.rectified_flow(), jnp.array([[0.5]]), jnp.array([3])
    >>> factor = lambda cond: jnp.where(cond < 0, 1.0, 2.0)[:, None]  # velocities that are parallel
    >>> denoise = lambda x_t, t, cond: dj.Estimates(x_t - factor(cond), x_t + factor(cond))
    >>> guided = dj.guidance.cfg_zero_star(denoise, flow, scale=5.0, zero_steps=0)
    >>> pair = guided(x_t, 0.5, label)
    >>> print(pair.eps - pair.x_0)  # fitted, the unconditional one is the conditional: no guidance
    [[4.]]
    """
    scale = one_scale(scale, papers_scale)
    if isinstance(zero_steps, bool) or not isinstance(zero_steps, int) or zero_steps < 0:
        raise ValueError(f"zero_steps must be a whole number of at least 0, not {zero_steps!r}")
    count = memory.Slot()

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        needs_condition(cond, "CFG-Zero* guidance")
        positive, negative = together(denoise, x_t, t, (cond, null(cond)))
        c, u = positive.eps - positive.x_0, negative.eps - negative.x_0
        fitted = _dot(c, u) / jnp.maximum(_dot(u, u), 1e-24) * u
        value = fitted + scale_at(scale, t, x_t) * (c - fitted)
        if zero_steps:
            done = count.read(jnp.zeros((), jnp.int32))
            count.write(done + 1)
            value = jnp.where(done < zero_steps, 0.0, value)
        pair = velocity.estimates(value, x_t, scales_like(schedule, t, x_t))
        return positive._replace(x_0=pair.x_0, eps=pair.eps)

    return guided
