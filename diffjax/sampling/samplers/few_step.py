"""Samplers of models that were trained for few steps; a grid of one step is one evaluation."""

from typing import Any

import jax.numpy as jnp

from diffjax.denoisers import Denoiser
from diffjax.flow_maps import FlowMap
from diffjax.grids import Grid
from diffjax.sampling.samplers.loop import NoiseFn, Samples, require_key, run, step_scales
from diffjax.types import Array, Data, PRNGKeys


def flow_map(
    jump: FlowMap,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """x_s = jump(x_t, t, s) from each time of the grid to the next (Geng et al. 2025, section 3.3).

    Deterministic. For an exact flow map the result depends on neither the number of steps nor where
    they are.

    Args:
      jump: x_t, t, s, cond -> x_s.
      x_T: (B, ...) noise to start from.
      grid: the times.
      key: not used.
      cond: passed to the flow map.
      keep_trajectory: whether to return every x_t.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> std = lambda t: jnp.hypot((1 - t) * 0.5, t)  # of x_t, for data of N(1, 0.5^2)
    >>> jump = lambda x_t, t, s, cond=None: (1 - s) + (x_t - (1 - t)) * std(s) / std(t)
    >>> for grid in (dj.grids.trailing(flow, 1), dj.grids.trailing(flow, 4)):
    ...     print(dj.samplers.flow_map(jump, noise, grid=grid).x_0.round(2))
    [[0.5 1.5]]
    [[0.5 1.5]]
    """

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        return carry, jump(x_t, c["t"], c["t_next"], cond)

    return run(step, x_T, grid=grid, coefficients={}, key=key, keep_trajectory=keep_trajectory)


def consistency(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """x_s = signal_s x_0 + noise_s z, with new noise z in every step but the one to clean data.

    Song et al. 2023, "Consistency models", algorithm 1. For a consistency function, whose x_0 is
    where the ODE's path through x_t ends, every step ends with the law of the data at time s. For
    a denoiser's posterior mean it is `ddim`'s generalised process with the largest noise that
    leaves q(x_s | x_0) as it is.

    Args:
      denoise: the consistency function as a denoiser, whose `x_0` alone is used.
      x_T: (B, ...) noise to start from.
      grid: the times.
      key: as in `ancestral`; needed for more than one step.
      cond: passed to the denoiser.
      keep_trajectory: whether to return every x_t.

    Raises:
      ValueError: no key for a grid of several steps.

    >>> import jax, jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> std = lambda t: jnp.hypot((1 - t) * 0.5, t)  # of x_t, for data of N(1, 0.5^2)
    >>> end = lambda x_t, t, cond=None: dj.Estimates(1 + 0.5 * (x_t - (1 - t)) / std(t), x_t)
    >>> options = dict(grid=dj.grids.trailing(flow, 2), key=jax.random.key(1))
    >>> x_0 = dj.samplers.consistency(end, noise, **options).x_0  # two evaluations
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    _, after = step_scales(grid)
    if after.noise_scale.any():
        require_key(key, "consistency with more than one step")

    def step(carry: None, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn) -> tuple[None, Data]:
        x_0 = denoise(x_t, c["t"], cond).x_0
        noise = draw_noise(0) if key is not None else jnp.zeros_like(x_t)
        return carry, c["signal"] * x_0 + c["noise"] * noise

    coefficients = {"signal": after.signal_scale, "noise": after.noise_scale}
    return run(
        step, x_T, grid=grid, coefficients=coefficients, key=key, keep_trajectory=keep_trajectory
    )
