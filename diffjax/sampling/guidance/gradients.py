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
    """The pair whose score, -eps / noise, is larger by `more`.

    Args:
      pair: the estimates at x_t.
      x_t: (B, ...) noisy data.
      t: scalar or (B,) times.
      schedule: the noise schedule.
      more: (B, ...) what is added to the score.

    Returns:
      Estimates that still fulfil x_t = signal x_0 + noise eps.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.5]])
    >>> pair = dj.denoisers.gaussian_denoiser(flow)(x_t, 0.5)
    >>> more = dj.guidance.add_score(pair, x_t, jnp.array(0.5), flow, jnp.array([[2.0]]))
    >>> print((pair.eps - more.eps) / 0.5, 0.5 * more.x_0 + 0.5 * more.eps)
    [[2.]] [[0.5]]
    """
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

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.5]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow)  # x_0 ~ N(0, 1), and y ~ N(x_0, 1) is 2
    >>> log_prob = lambda x_t, t: -((2 - x_t[:, 0]) ** 2) / 3  # x_0 | x_t is N(x_t, 1/2) at t = 0.5
    >>> guided = dj.guidance.classifier(denoise, flow, log_prob=log_prob)
    >>> exact = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5**0.5)  # x_0 | y by Bayes
    >>> print(guided(x_t, 0.5).x_0, exact(x_t, 0.5).x_0)
    [[1.]] [[1.]]
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

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.5]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow)
    >>> score = lambda x_0: -((2 - x_0[:, 0]) ** 2)  # best at 2
    >>> for scale in (0.0, 0.25, 0.5):
    ...     print(dj.guidance.by_score_of_x0(denoise, flow, score=score, scale=scale)(x_t, 0.5).x_0)
    [[0.5]]
    [[0.875]]
    [[1.25]]
    """

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        def of(x: Data) -> tuple[Array, Estimates]:
            pair = denoise(x, t, cond)
            return score(pair.x_0).sum(), pair

        slope, pair = jax.grad(of, has_aux=True)(x_t)
        return add_score(pair, x_t, t, schedule, scale_at(scale, t, x_t) * slope)

    return guided
