"""A sampler that chooses its own steps."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.samplers.loop import Samples
from diffjax.schedules import Array, Schedule


def adaptive(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    schedule: Schedule,
    rtol: float = 1e-2,
    atol: float = 1e-3,
    max_steps: int = 1000,
) -> Samples:
    """Bogacki and Shampine's embedded pair of orders 3 and 2, along straight paths.

    Bogacki & Shampine 1989. The ODE is `euler`'s, dz/du = eps - x_0 with
    u = noise / (signal + noise), from the grid's first point to its last with noise, and from there
    to clean data in one plain step. A step is taken when the largest error of the batch, over
    atol + rtol |x|, is at most 1 in the mean square; three evaluations a try. Of the grid, the ends
    alone are used.

    Args:
      denoise, x_T, cond: as in `ancestral`.
      grid: two times with noise or more.
      key: not used.
      keep_trajectory: must be False: the number of steps is not known.
      schedule: the grid's, to find the time of a noise level.
      rtol, atol: relative and absolute tolerance.
      max_steps: tries after which the result is NaN.

    Raises:
      ValueError: a trajectory is asked for, or a tolerance is not positive.
    """
    del key
    if keep_trajectory:
        raise ValueError("adaptive keeps no trajectory: take a sampler with a fixed grid for one")
    if rtol <= 0 or atol <= 0:
        raise ValueError(f"rtol and atol must be positive, not {rtol} and {atol}")
    last = grid.steps - (grid.noise_scale[-1] == 0)
    if last < 1:
        raise ValueError("adaptive needs a grid of at least two times with noise")
    total = grid.signal_scale + grid.noise_scale
    u_grid = grid.noise_scale / total
    first_u, last_u = float(u_grid[0]), float(u_grid[last])
    first_t, last_t = float(grid.t[0]), float(grid.t[last])

    def at(u: Array) -> tuple[Array, Array]:
        """Time and signal + noise at u."""
        t = schedule.time(2 * (jnp.log1p(-u) - jnp.log(u)))
        t = jnp.clip(jnp.where(u >= first_u, first_t, jnp.where(u <= last_u, last_t, t)),
                     last_t, first_t)  # fmt: skip
        signal, noise = schedule(t)
        return t, signal + noise

    def velocity(z: Array, u: Array) -> Array:
        t, scale = at(u)
        x_0, eps = denoise(scale * z, t, cond)
        return eps - x_0

    def attempt(state: tuple[Array, ...]) -> tuple[Array, ...]:
        z, u, h, slope, tries = state
        h = jnp.minimum(h, u - last_u)
        k2 = velocity(z - h / 2 * slope, u - h / 2)
        k3 = velocity(z - 3 * h / 4 * k2, u - 3 * h / 4)
        z_new = z - h * (2 * slope + 3 * k2 + 4 * k3) / 9
        k4 = velocity(z_new, u - h)
        error = h * (-5 * slope / 72 + k2 / 12 + k3 / 9 - k4 / 8)
        allowed = atol + rtol * jnp.maximum(jnp.abs(z), jnp.abs(z_new))
        axes = tuple(range(1, z.ndim))
        worst = jnp.sqrt(jnp.square(error / allowed).mean(axes)).max()
        good = worst <= 1
        factor = jnp.clip(0.9 * jnp.maximum(worst, 1e-10) ** (-1 / 3), 0.2, 5.0)
        z, slope = (jnp.where(good, new, old) for new, old in ((z_new, z), (k4, slope)))
        return z, jnp.where(good, u - h, u), h * factor, slope, tries + 1

    def unfinished(state: tuple[Array, ...]) -> Array:
        _, u, _, _, tries = state
        return (u > last_u * (1 + 1e-6)) & (tries < max_steps)

    u = jnp.asarray(first_u, x_T.dtype)
    z = x_T / jnp.asarray(total[0], x_T.dtype)
    h = jnp.asarray((first_u - last_u) / 20, x_T.dtype)
    state = (z, u, h, velocity(z, u), jnp.asarray(0))
    z, u, _, slope, _ = jax.lax.while_loop(unfinished, attempt, state)
    z = jnp.where(u > last_u * (1 + 1e-6), math.nan, z)
    if grid.noise_scale[-1] == 0:
        z = z - last_u * slope  # straight to u = 0, where z is the estimate of x_0
        return Samples(z, None)
    return Samples(z * jnp.asarray(total[last], x_T.dtype), None)
