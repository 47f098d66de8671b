"""Denoiser -> denoiser: what changes an estimate on its way to a sampler.

The pair that a wrapper returns fulfils x_t = signal_scale x_0 + noise_scale eps like the one it
got, so that every sampler can use it and wrappers can be put around each other. Thresholding
(`thresholding`) belongs outside guidance, which is what drives x_0 out of range. Guidance moves the
mean of a step alone: a learned variance is the conditional estimate's, whatever the scale.

Scales follow one convention: w = 1 is the conditional estimate as it is, w = 0 the unconditional
one, and w > 1 extrapolates. Ho & Salimans 2022 and some after them call w - 1 the scale; where that
is meant it is written as `papers_scale`.

    linear      classifier_free, autoguidance, perturbed_attention, compose
    projected   adaptive_projected, tangential, cfg_zero_star
    gradients   classifier, by_score_of_x0, add_score
"""

from diffjax.sampling.guidance.common import Null, Scale, no_label, scale_at, together
from diffjax.sampling.guidance.gradients import add_score, by_score_of_x0, classifier
from diffjax.sampling.guidance.linear import (
    autoguidance,
    classifier_free,
    compose,
    perturbed_attention,
)
from diffjax.sampling.guidance.projected import adaptive_projected, cfg_zero_star, tangential

__all__ = [
    "Null",
    "Scale",
    "adaptive_projected",
    "add_score",
    "autoguidance",
    "by_score_of_x0",
    "cfg_zero_star",
    "classifier",
    "classifier_free",
    "compose",
    "no_label",
    "perturbed_attention",
    "scale_at",
    "tangential",
    "together",
]
