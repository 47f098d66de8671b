"""Guidance by the gradient of a function of x_t or of the estimate of x_0."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.parametrisations import Estimates
from diffjax.process import scales_like
from diffjax.sampling.guidance.common import Scale, scale_at
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, PerExample, Times


@checked
def add_score(pair: Estimates, x_t: Data, t: Times, schedule: Schedule, more: Data) -> Estimates:
    """The pair whose score, -eps / noise, is larger by `more`."""
    signal, noise = scales_like(schedule, t, x_t)
    # Where the signal vanishes, the score determines no x_0: the pair stays.
    lift = jnp.where(signal > 0, noise**2 / jnp.where(signal > 0, signal, 1.0), 0.0)
    x_0 = pair.x_0 + lift * more
    eps = jnp.where(signal > 0, pair.eps - noise * more, pair.eps)
    return pair._replace(x_0=x_0, eps=eps)


@checked
def classifier(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    log_prob: Callable[[Data, Times], PerExample],
    scale: Scale = 1.0,
) -> Denoiser:
    """Classifier guidance: the score of p(x_t) p(y | x_t)^w.

    Dhariwal & Nichol 2021, algorithm 2: eps - noise w grad log p(y | x_t). With the true classifier
    and w = 1 it is the conditional score.

    Args:
      denoise: x_t, t, cond -> Estimates.
      schedule: its schedule.
      log_prob: (x_t, t) -> (B,) log p(y | x_t), of a classifier that knows noisy images; any
        constant may be added.
      scale: w; 0 is no guidance.
    """

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        slope = jax.grad(lambda x: log_prob(x, t).sum())(x_t)
        return add_score(denoise(x_t, t, cond), x_t, t, schedule, scale_at(scale, t, x_t) * slope)

    return guided


@checked
def by_score_of_x0(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    score: Callable[[Data], PerExample],
    scale: Scale = 1.0,
) -> Denoiser:
    """Guidance by any differentiable score of the estimate of x_0, such as CLIP's of a text.

    The score is lifted to x_t through the denoiser: w grad_{x_t} score(x_0(x_t)) is added to the
    score function (Bansal et al. 2023, "Universal guidance", forward guidance; Chung et al. 2023).
    Costs a backward pass of the network.

    Args:
      denoise: x_t, t, cond -> Estimates.
      schedule: its schedule.
      score: x_0 (B, ...) -> (B,), higher is better.
      scale: w; 0 is no guidance.
    """

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        def of(x: Data) -> tuple[Array, Estimates]:
            pair = denoise(x, t, cond)
            return score(pair.x_0).sum(), pair

        slope, pair = jax.grad(of, has_aux=True)(x_t)
        return add_score(pair, x_t, t, schedule, scale_at(scale, t, x_t) * slope)

    return guided
