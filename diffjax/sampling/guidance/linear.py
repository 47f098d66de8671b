"""Guidance by a linear combination of estimates, under several conditions or of several models."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.checks import checked
from diffjax.denoisers import Denoiser
from diffjax.parametrisations import Estimates
from diffjax.process import broadcast
from diffjax.sampling.guidance.common import (
    Null,
    Scale,
    between,
    needs_condition,
    no_label,
    one_scale,
    scale_at,
    together,
    with_x0,
)
from diffjax.schedules import Schedule
from diffjax.types import Data, Times


@checked
def classifier_free(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    null: Null = no_label,
    scale: Scale | None = None,
    papers_scale: float | None = None,
    interval: tuple[float, float] = (0.0, float("inf")),
    rescale: float = 0.0,
) -> Denoiser:
    """Classifier-free guidance: unconditional + w (conditional - unconditional).

    Ho & Salimans 2022, equation 6. Both estimates come from one call on a batch of 2B.

    Args:
      denoise: of a network that was trained with conditions dropped.
      schedule: its schedule.
      null: makes the tree of no condition.
      scale: w, or a schedule of it over t; 1 leaves the conditional estimate.
      papers_scale: w - 1, in place of `scale`.
      interval: (low, high] of noise / signal outside of which w is 1 and the unconditional half is
        not computed where t is a scalar (Kynkäänniemi et al. 2024).
      rescale: phi in [0, 1]: how far the standard deviation of x_0 is taken back to the conditional
        one's (Lin et al. 2024, section 3.4, who do so with the network's output).

    Raises:
      ValueError: both scales or none, an empty interval, phi out of range; when called, no
        condition.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t, label = dj.schedules.rectified_flow(), jnp.array([[0.5]]), jnp.array([3])
    >>> mean = lambda cond: jnp.where(cond < 0, 0.0, 1.0)[:, None]  # of all images, and of a class
    >>> denoise = lambda x_t, t, cond: dj.denoisers.gaussian_denoiser(flow, mean=mean(cond))(x_t, t)
    >>> for scale in (0.0, 1.0, 3.0):  # unconditional, conditional, beyond it
    ...     print(dj.guidance.classifier_free(denoise, flow, scale=scale)(x_t, 0.5, label).x_0)
    [[0.5]]
    [[1.]]
    [[2.]]
    """
    scale = one_scale(scale, papers_scale)
    low, high = interval
    if not 0 <= low < high:
        raise ValueError(f"interval must be (low, high) with 0 <= low < high, not {interval}")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must be in [0, 1], not {rescale}")
    everywhere = low == 0 and high == float("inf")
    with np.errstate(divide="ignore"):
        lowest, highest = -2 * np.log([high, low])

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        needs_condition(cond, "classifier-free guidance")

        def inside(x_t: Data) -> Estimates:
            positive, negative = together(denoise, x_t, t, (cond, null(cond)))
            pair = between(negative, positive, scale_at(scale, t, x_t))
            if not rescale:
                return pair
            axes = tuple(range(1, x_t.ndim))
            target, own = (e.x_0.std(axes, keepdims=True) for e in (positive, pair))
            factor = rescale * target / jnp.maximum(own, 1e-12) + (1 - rescale)
            return with_x0(pair, factor * pair.x_0, x_t, t, schedule)

        if everywhere:
            return inside(x_t)
        log_snr = schedule.log_snr(jnp.asarray(t))  # (low, high] in noise / signal
        within = (log_snr < highest) & (log_snr >= lowest)
        if jnp.ndim(t) == 0:
            return jax.lax.cond(within, inside, lambda x: denoise(x, t, cond), x_t)
        pair, plain = inside(x_t), denoise(x_t, t, cond)
        return jax.tree.map(lambda a, b: jnp.where(broadcast(within, x_t), a, b), pair, plain)

    return guided


@checked
def autoguidance(denoise: Denoiser, weak: Denoiser, *, scale: Scale) -> Denoiser:
    """Guidance of a model by a weaker version of itself: weak + w (denoise - weak).

    Karras et al. 2024, "Guiding a diffusion model with a bad version of itself", section 4. The
    weaker one, smaller or trained for less time, sees the same condition.

    Args:
      denoise: the model.
      weak: the weaker model, of the same schedule.
      scale: w; 1 leaves the model as it is.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.5]])
    >>> good, weak = (dj.denoisers.gaussian_denoiser(flow, mean=mean) for mean in (1.0, 0.0))
    >>> for scale in (1.0, 2.0):
    ...     print(dj.guidance.autoguidance(good, weak, scale=scale)(x_t, 0.5).x_0)
    [[1.]]
    [[1.5]]
    """

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        return between(weak(x_t, t, cond), denoise(x_t, t, cond), scale_at(scale, t, x_t))

    return guided


@checked
def perturbed_attention(
    denoise: Denoiser,
    perturbed: Denoiser,
    *,
    scale: Scale | None = None,
    papers_scale: float | None = None,
    around: Denoiser | None = None,
) -> Denoiser:
    """Perturbed-attention guidance: away from the model that has lost some of its attention.

    Ahn et al. 2024, "Self-rectifying diffusion sampling with perturbed-attention guidance",
    section 4: around + (w - 1) (denoise - perturbed). It needs no condition and no
    training, only a network whose attention can be switched off, such as
    `UNet.clone(perturbed=("middle_0",))` with the same parameters.

    Args:
      denoise: the model.
      perturbed: the same model with no attention in some layers.
      scale: w, or a schedule of it over t; 1 leaves `around`.
      papers_scale: s = w - 1, in place of `scale`.
      around: what is guided: `denoise` by default; `classifier_free` of it to have both.

    Raises:
      ValueError: both scales or none.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t = dj.schedules.rectified_flow(), jnp.array([[0.5]])
    >>> good, bad = (dj.denoisers.gaussian_denoiser(flow, mean=mean) for mean in (1.0, 0.0))
    >>> for scale in (1.0, 2.0):
    ...     print(dj.guidance.perturbed_attention(good, bad, scale=scale)(x_t, 0.5).x_0)
    [[1.]]
    [[1.5]]
    """
    scale = one_scale(scale, papers_scale)

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        good, bad = denoise(x_t, t, cond), perturbed(x_t, t, cond)
        start = good if around is None else around(x_t, t, cond)
        w = scale_at(scale, t, x_t)
        return start._replace(
            x_0=start.x_0 + (w - 1) * (good.x_0 - bad.x_0),
            eps=start.eps + (w - 1) * (good.eps - bad.eps),
        )

    return guided


@checked
def compose(
    denoise: Denoiser, *, conditions: Sequence[tuple[float, Any]], null: Null = no_label
) -> Denoiser:
    """Several conditions at once: unconditional + sum_i w_i (conditional_i - unconditional).

    Liu et al. 2022, "Compositional visual generation with composable diffusion models", equations
    11 and 13: the product of the conditions, and their negation with w_i < 0. One call on a batch
    of (1 + number of conditions) B. The condition that a sampler passes on is not looked at. A
    learned variance is that of the first condition.

    Args:
      denoise: of a network that was trained with conditions dropped.
      conditions: (w_i, cond_i), trees of one structure with (B, ...) leaves.
      null: makes the tree of no condition.

    Raises:
      ValueError: no conditions.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, x_t, labels = dj.schedules.rectified_flow(), jnp.array([[0.5]]), jnp.array([[0], [1]])
    >>> mean = lambda cond: jnp.where(cond < 0, 0.0, 1.0 + cond)[:, None]
    >>> denoise = lambda x_t, t, cond: dj.denoisers.gaussian_denoiser(flow, mean=mean(cond))(x_t, t)
    >>> both = dj.guidance.compose(denoise, conditions=[(1.0, labels[0]), (1.0, labels[1])])
    >>> print(both(x_t, 0.5).x_0)  # of 0.5, 1.0 and 1.5: 0.5 + (1.0 - 0.5) + (1.5 - 0.5)
    [[2.]]
    """
    if not conditions:
        raise ValueError("compose needs at least one (weight, condition)")
    weights, conds = zip(*conditions, strict=True)

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        del cond
        plain, *each = together(denoise, x_t, t, (null(conds[0]), *conds))
        x_0, eps = plain.x_0, plain.eps
        for w, pair in zip(weights, each, strict=True):
            x_0, eps = x_0 + w * (pair.x_0 - plain.x_0), eps + w * (pair.eps - plain.eps)
        return each[0]._replace(x_0=x_0, eps=eps)

    return guided
