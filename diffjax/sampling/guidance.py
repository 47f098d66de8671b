"""Denoiser -> denoiser: what changes an estimate on its way to a sampler.

The pair that a wrapper returns fulfils x_t = signal_scale x_0 + noise_scale eps like the one it
got, so that every sampler can use it and wrappers can be put around each other. Thresholding
(`thresholding`) belongs outside guidance, which is what drives x_0 out of range. Guidance moves the
mean of a step alone: a learned variance is the conditional estimate's, whatever the scale.

Scales follow one convention: w = 1 is the conditional estimate as it is, w = 0 the unconditional
one, and w > 1 extrapolates. Ho & Salimans 2022 and some after them call w - 1 the scale; where that
is meant it is written as `papers_scale`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from diffjax.denoisers import Denoiser
from diffjax.parametrisations import Estimates, eps_from_x0
from diffjax.process import broadcast, scales_like
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, PerExample, Times

# A number, or a function of the time: t (scalar or (B,)) -> scales of t's shape.
Scale = float | Callable[[Array], Array]
# cond (any pytree of (B, ...) arrays) -> the same tree that stands for no condition.
Null = Callable[[Any], Any]


def no_label(labels: Integer[Array, "*shape"]) -> Integer[Array, "*shape"]:
    """-1 for every label: what a class-conditional `models.UNet` takes for no class."""
    return jnp.full_like(labels, -1)


def scale_at(scale: Scale, t: Times, x: Data) -> Array:
    """The scale at t, shaped to multiply the images x."""
    value = scale(jnp.asarray(t)) if callable(scale) else jnp.asarray(scale)
    return broadcast(value.astype(x.dtype), x)


def _one_scale(scale: Scale | None, papers_scale: float | None) -> Scale:
    if (scale is None) == (papers_scale is None):
        raise ValueError("give one of scale (1: no guidance) and papers_scale (0: no guidance)")
    if papers_scale is not None:
        return 1.0 + papers_scale
    assert scale is not None
    return scale


def _needs_condition(cond: Any, what: str) -> None:
    if not jax.tree.leaves(cond):
        raise ValueError(
            f"{what} needs a condition: pass cond=..., or sample an unconditional model without it"
        )


def together(denoise: Denoiser, x_t: Data, t: Times, conds: Sequence[Any]) -> list[Estimates]:
    """The estimates of one x_t under several conditions, by one call on their concatenation.

    Args:
      denoise: x_t, t, cond -> Estimates.
      x_t: (B, ...).
      t: scalar or (B,).
      conds: trees of one structure, with (B, ...) leaves.

    Returns:
      One pair a condition.
    """
    n, batch = len(conds), len(x_t)
    t = jnp.asarray(t)
    both = denoise(
        jnp.concatenate([x_t] * n),
        jnp.concatenate([t] * n) if t.ndim else t,
        jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conds),
    )
    return [jax.tree.map(lambda e, i=i: e[i * batch : (i + 1) * batch], both) for i in range(n)]


def _between(start: Estimates, end: Estimates, w: Array) -> Estimates:
    """start + w (end - start); the pair stays one, since its weights sum to 1."""
    return end._replace(
        x_0=start.x_0 + w * (end.x_0 - start.x_0), eps=start.eps + w * (end.eps - start.eps)
    )


def _with_x0(pair: Estimates, x_0: Data, x_t: Data, t: Times, schedule: Schedule) -> Estimates:
    """The pair with another x_0 and the eps that belongs to it."""
    return pair._replace(x_0=x_0, eps=eps_from_x0(x_t, x_0, scales_like(schedule, t, x_t)))


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
      null: makes the tree that stands for no condition.
      scale: w, or a schedule of it over t; 1 leaves the conditional estimate.
      papers_scale: w - 1, in place of `scale`.
      interval: (low, high] of noise / signal outside of which w is 1 and the unconditional half is
        not computed where t is a scalar (Kynkäänniemi et al. 2024).
      rescale: phi in [0, 1]: how far the standard deviation of x_0 is taken back to the conditional
        one's (Lin et al. 2024, section 3.4, who do so with the network's output).

    Raises:
      ValueError: both scales or none, an empty interval, phi out of range; when called, no
        condition.
    """
    scale = _one_scale(scale, papers_scale)
    low, high = interval
    if not 0 <= low < high:
        raise ValueError(f"interval must be (low, high) with 0 <= low < high, not {interval}")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must be in [0, 1], not {rescale}")
    everywhere = low == 0 and high == float("inf")
    with np.errstate(divide="ignore"):
        lowest, highest = -2 * np.log([high, low])

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        _needs_condition(cond, "classifier-free guidance")

        def inside(x_t: Data) -> Estimates:
            positive, negative = together(denoise, x_t, t, (cond, null(cond)))
            pair = _between(negative, positive, scale_at(scale, t, x_t))
            if not rescale:
                return pair
            axes = tuple(range(1, x_t.ndim))
            target, own = (e.x_0.std(axes, keepdims=True) for e in (positive, pair))
            factor = rescale * target / jnp.maximum(own, 1e-12) + (1 - rescale)
            return _with_x0(pair, factor * pair.x_0, x_t, t, schedule)

        if everywhere:
            return inside(x_t)
        log_snr = schedule.log_snr(jnp.asarray(t))  # (low, high] in noise / signal
        within = (log_snr < highest) & (log_snr >= lowest)
        if jnp.ndim(t) == 0:
            return jax.lax.cond(within, inside, lambda x: denoise(x, t, cond), x_t)
        pair, plain = inside(x_t), denoise(x_t, t, cond)
        return jax.tree.map(lambda a, b: jnp.where(broadcast(within, x_t), a, b), pair, plain)

    return guided


def autoguidance(denoise: Denoiser, weak: Denoiser, *, scale: Scale) -> Denoiser:
    """Guidance of a model by a weaker version of itself: weak + w (denoise - weak).

    Karras et al. 2024, "Guiding a diffusion model with a bad version of itself", section 4. The
    weaker one, smaller or trained for less time, sees the same condition.

    Args:
      denoise: the model.
      weak: the weaker model, of the same schedule.
      scale: w; 1 leaves the model as it is.
    """

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        return _between(weak(x_t, t, cond), denoise(x_t, t, cond), scale_at(scale, t, x_t))

    return guided


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
    """
    scale = _one_scale(scale, papers_scale)

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        good, bad = denoise(x_t, t, cond), perturbed(x_t, t, cond)
        start = good if around is None else around(x_t, t, cond)
        w = scale_at(scale, t, x_t)
        return start._replace(
            x_0=start.x_0 + (w - 1) * (good.x_0 - bad.x_0),
            eps=start.eps + (w - 1) * (good.eps - bad.eps),
        )

    return guided


def adaptive_projected(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    null: Null = no_label,
    scale: Scale | None = None,
    papers_scale: float | None = None,
    parallel: float = 0.0,
    norm_limit: float = float("inf"),
) -> Denoiser:
    """Adaptive projected guidance: what saturates colours is left out of the difference.

    Sadat et al. 2024, "Eliminating oversaturation and artifacts of high guidance scales", algorithm
    1: the difference of the two x_0 is cut to a norm, and its part along the conditional x_0 is
    weighed by `parallel`. Their momentum over steps is left out: a denoiser has no state.

    Args:
      denoise, schedule, null, scale, papers_scale: as in `classifier_free`.
      parallel: eta; 1 with no limit is `classifier_free`.
      norm_limit: r, the largest norm of an example's difference.

    Raises:
      ValueError: both scales or none, a limit that is not positive; when called, no condition.
    """
    scale = _one_scale(scale, papers_scale)
    if norm_limit <= 0:
        raise ValueError(f"norm_limit must be positive, not {norm_limit}")

    def guided(x_t: Data, t: Times, cond: Any = None) -> Estimates:
        _needs_condition(cond, "adaptive projected guidance")
        positive, negative = together(denoise, x_t, t, (cond, null(cond)))
        axes = tuple(range(1, x_t.ndim))

        def dot(a: Array, b: Array) -> Array:
            return (a * b).sum(axes, keepdims=True)

        change = positive.x_0 - negative.x_0
        length = jnp.sqrt(jnp.maximum(dot(change, change), 1e-24))
        change = change * jnp.minimum(1.0, norm_limit / length)
        squared = jnp.maximum(dot(positive.x_0, positive.x_0), 1e-24)
        along = dot(change, positive.x_0) / squared * positive.x_0
        x_0 = positive.x_0 + (scale_at(scale, t, x_t) - 1) * (change - (1 - parallel) * along)
        return _with_x0(positive, x_0, x_t, t, schedule)

    return guided


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
      null: makes the tree that stands for no condition.

    Raises:
      ValueError: no conditions.
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


def add_score(pair: Estimates, x_t: Data, t: Times, schedule: Schedule, more: Data) -> Estimates:
    """The pair whose score, -eps / noise, is larger by `more`."""
    signal, noise = scales_like(schedule, t, x_t)
    # Where the signal vanishes, the score determines no x_0: the pair stays.
    lift = jnp.where(signal > 0, noise**2 / jnp.where(signal > 0, signal, 1.0), 0.0)
    x_0 = pair.x_0 + lift * more
    eps = jnp.where(signal > 0, pair.eps - noise * more, pair.eps)
    return pair._replace(x_0=x_0, eps=eps)


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
