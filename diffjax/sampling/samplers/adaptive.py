"""A sampler that chooses its own steps between the times of the grid."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.loop import NoiseFn, Samples, run
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, PRNGKeys

# x_0 and eps - x_0 at the present x_t, the next step's size in u, tries so far.
_Carry = tuple[Data, Data, Array, Array]


def adaptive(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    schedule: Schedule,
    rtol: float = 1e-2,
    atol: float = 1e-3,
    max_steps: int = 1000,
) -> Samples:
    """Bogacki and Shampine's embedded pair of orders 3 and 2, along straight paths.

    Bogacki & Shampine 1989. The ODE is `euler`'s, dz/du = eps - x_0 with
    u = noise / (signal + noise). Every time of the grid is visited, with as many steps between two
    of them as the tolerance asks; a grid of few times leaves the choice to the tolerance. The step
    to clean data is a plain one. A step is taken when the largest error of the batch, over
    atol + rtol |z|, is at most 1 in the mean square; three evaluations a try, and one at x_T.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
      schedule: the grid's, to find the time of a noise level.
      rtol, atol: relative and absolute tolerance.
      max_steps: tries in all, after which the result is NaN.

    Raises:
      ValueError: a tolerance that is not positive.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> grid = dj.grids.at(flow, 2, times=(1.0, 0.01))
    >>> x_0 = dj.samplers.adaptive(denoise, noise, grid=grid, schedule=flow).x_0
    >>> print(x_0.round(2))  # the steps between are its own
    [[0.5 1.5]]
    """
    del key
    if rtol <= 0 or atol <= 0:
        raise ValueError(f"rtol and atol must be positive, not {rtol} and {atol}")
    total = grid.signal_scale + grid.noise_scale
    u_grid = grid.noise_scale / total
    is_clean = grid.noise_scale[1:] == 0
    columns = {
        "u": u_grid[:-1],
        # No way to go where the step is plain.
        "u_next": np.where(is_clean, u_grid[:-1], u_grid[1:]),
        "scale": total[:-1], "scale_next": total[1:], "is_clean": is_clean,
    }  # fmt: skip

    def estimates(z: Data, u: Array, c: dict[str, Array]) -> tuple[Data, Data]:
        """x_0 and dz/du between two times of the grid, which are met as they are tabled."""
        between = schedule.time(2 * (jnp.log1p(-u) - jnp.log(u)))
        t = jnp.clip(between, c["t_next"], c["t"])
        t = jnp.where(u >= c["u"], c["t"], jnp.where(u <= c["u_next"], c["t_next"], t))
        # In z's type, which the schedule's numbers would widen.
        signal, noise = (scale.astype(z.dtype) for scale in schedule(t))
        x_0, eps, _ = denoise((signal + noise) * z, t, cond)
        return x_0, eps - x_0

    def step(
        carry: _Carry, x_t: Data, c: dict[str, Array], draw_noise: NoiseFn
    ) -> tuple[_Carry, Data]:
        x_0, slope, h, tries = carry

        def attempt(state: tuple[Array, ...]) -> tuple[Array, ...]:
            z, u, x_0, slope, h, tries = state
            reaches = h >= u - c["u_next"]
            size = jnp.where(reaches, u - c["u_next"], h)
            u_new = jnp.where(reaches, c["u_next"], u - h)
            _, k2 = estimates(z - size / 2 * slope, u - size / 2, c)
            _, k3 = estimates(z - 3 * size / 4 * k2, u - 3 * size / 4, c)
            z_new = z - size * (2 * slope + 3 * k2 + 4 * k3) / 9
            x_0_new, k4 = estimates(z_new, u_new, c)
            error = size * (-5 * slope / 72 + k2 / 12 + k3 / 9 - k4 / 8)
            allowed = atol + rtol * jnp.maximum(jnp.abs(z), jnp.abs(z_new))
            worst = jnp.sqrt(jnp.square(error / allowed).mean(tuple(range(1, z.ndim)))).max()
            good = worst <= 1
            proposed = size * jnp.clip(0.9 * jnp.maximum(worst, 1e-10) ** (-1 / 3), 0.2, 5.0)
            # A step that the grid cut short says nothing against a longer one.
            h = jnp.where(good & reaches, jnp.maximum(h, proposed), proposed)
            new, old = (z_new, u_new, x_0_new, k4), (z, u, x_0, slope)
            kept = (jnp.where(good, a, b) for a, b in zip(new, old, strict=True))
            return (*kept, h, tries + 1)

        def unfinished(state: tuple[Array, ...]) -> Array:
            return (state[1] > c["u_next"]) & (state[-1] < max_steps)

        state: tuple[Array, ...] = (x_t / c["scale"], c["u"], x_0, slope, h, tries)
        z, u, x_0, slope, h, tries = jax.lax.while_loop(unfinished, attempt, state)
        given_up = jnp.where(u > c["u_next"], math.nan, 0.0).astype(x_t.dtype)
        x_0 += given_up
        x_s = jnp.where(c["is_clean"] > 0, x_0, c["scale_next"] * (z + given_up))
        return (x_0, slope, h, tries), x_s

    first = denoise(x_T, jnp.asarray(grid.t[0]), cond)
    h = jnp.asarray((u_grid[0] - u_grid[-1]) / 20, x_T.dtype)
    return run(
        step, x_T, grid=grid, coefficients=columns,
        carry=(first.x_0, first.eps - first.x_0, h, jnp.asarray(0)), key=None,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip
