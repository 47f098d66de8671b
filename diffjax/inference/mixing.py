"""Samples between two seeds, or between two classes or prompts.

Both functions draw one sample, like `Pipeline.sample` with a count of 1, and take its settings.
`StepByStep.running` runs them step by step.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.inference.inputs import choice_of, seed_of
from diffjax.inference.pipeline import Pipeline
from diffjax.parametrisations import Estimates
from diffjax.sampling import editing
from diffjax.sampling.guidance.common import between
from diffjax.types import Array


def sample_between_seeds(
    model: Pipeline,
    seeds: tuple[int, int],
    *,
    weight: float,
    prompts: tuple[str, ...] = (),
    labels: tuple[int, ...] = (),
    **how: Any,
) -> np.ndarray:
    """A sample whose first noise is on the great circle between those of two seeds: `slerp`.

    The noise of a stochastic sampler's steps is the first seed's throughout, so that only x_T
    changes; with a deterministic sampler the ends are the seeds' own samples.

    Args:
      model: the model.
      seeds: of the two ends.
      weight: 0 for the first seed, 1 for the second.
      prompts, labels, how: see `Pipeline.sample`.

    Returns:
      uint8 (1, H, W, C).

    Raises:
      UserError: as `Pipeline.sample`.
    """
    weight = arguments.number("weight", weight)
    first, second = map(seed_of, seeds)
    generator = model.generator(**how).of(choice_of(prompts, labels, None), seed=first)
    index = jnp.arange(1)
    start, keys = generator.noise(index, first)
    end, _ = generator.noise(index, second)
    eps = start if weight == 0 else end if weight == 1 else editing.slerp(start, end, weight)
    sampling, weak = generator.sampling, generator.weak_params
    x_T = eps * jnp.float32(sampling.grid.noise_scale[0])
    of = generator.flow_map(model.params) if sampling.jumps else None
    samples = sampling.sampler(
        generator.denoiser(model.params, weak) if of is None else of,
        x_T, grid=sampling.grid, key=keys, cond=generator.conditions.batch(0, 1),
    )  # fmt: skip
    return generator.finished(np.asarray(model.space.to_images(samples.x_0)))


def sample_between_conditions(
    model: Pipeline,
    start: dict[str, Any],
    end: dict[str, Any],
    *,
    weight: float,
    seed: int = 0,
    **how: Any,
) -> np.ndarray:
    """A sample by the mean of two conditions' estimates, (1 - w) of the one and w of the other.

    Each estimate has the guidance of its own condition. With w = 0 or 1 the other condition is
    not evaluated, and the sample is that of `Pipeline.sample`.

    Args:
      model: the model.
      start, end: the conditions, {"labels": [3]} or {"prompts": ["a cat"]}.
      weight: w, in [0, 1].
      seed: of the noise.
      how: see `Pipeline.sample`.

    Returns:
      uint8 (1, H, W, C).

    Raises:
      UserError: as `Pipeline.sample`, a weight out of range, or a sampler of flow maps, which has
        no estimates.
    """
    weight, seed = arguments.number("weight", weight), seed_of(seed)
    if not 0 <= weight <= 1:
        raise UserError(f"weight is {weight:g}: expected a number from 0 to 1")
    generator = model.generator(**how)
    if generator.sampling.jumps:
        raise UserError(
            "two conditions are mixed by their estimates of x_0, which a flow map's steps have "
            "not: use another sampler, such as ddim"
        )
    # A denoiser each, since guidance with momentum remembers its own condition's steps.
    ends = []
    for condition in (start, end):
        choice = choice_of(condition.get("prompts", ()), condition.get("labels", ()), None)
        made = generator.of(choice, seed=seed)
        denoise = made.denoiser(model.params, made.weak_params)
        ends.append((denoise, made.conditions.batch(0, 1)))
    (of_start, start_cond), (of_end, end_cond) = ends

    def denoise_between(x_t: Array, t: Any, cond: Any = None) -> Estimates:
        if weight == 0:
            return of_start(x_t, t, start_cond)
        if weight == 1:
            return of_end(x_t, t, end_cond)
        pair = of_start(x_t, t, start_cond), of_end(x_t, t, end_cond)
        return between(*pair, jnp.float32(weight))

    eps, keys = generator.noise(jnp.arange(1), seed)
    grid = generator.sampling.grid
    samples = generator.sampling.sampler(
        denoise_between, eps * jnp.float32(grid.noise_scale[0]), grid=grid, key=keys, cond=None
    )
    return generator.finished(np.asarray(model.space.to_images(samples.x_0)))
