"""Runge and Kutta's methods along straight paths, for flows: orders 2, 3 and 4.

Singlestep solvers (singlestep.py) of the ODE that `euler` solves, dz/du = eps - x_0 with
u = noise / (signal + noise). Its end, u = 0, is finite, and a step to clean data asks for nothing
there but in the methods that have a stage at their end.
"""

from typing import Any

import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.linear import check_steps, linear
from diffjax.sampling.samplers.loop import Samples
from diffjax.sampling.samplers.singlestep import empty_columns
from diffjax.types import Data, PRNGKeys


def _straight(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(signal + noise, u): divided by the first, x moves by (eps - x_0) du; see `euler`."""
    total = grid.signal_scale + grid.noise_scale
    return total, grid.noise_scale / total


def midpoint(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """The midpoint rule along straight paths, for flows. Order 2.

    With every second point of the grid half-way in u = noise / (signal + noise), as on an even grid
    of a rectified flow, it is the midpoint rule on the velocity; elsewhere the Runge-Kutta method
    of two stages that has its stage there.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.

    Raises:
      ValueError: fewer than 2 steps.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.midpoint(denoise, noise, grid=dj.grids.trailing(flow, 24)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    check_steps("midpoint", grid, 2)
    total, u = _straight(grid)
    c = empty_columns(grid.steps, 2)
    for n in range(grid.steps):
        stage = n % 2
        first = n - stage
        c["start"][n] = stage == 0
        c["anchor"][n] = total[n + 1] / total[first]
        du = u[n + 1] - u[first]
        share = du / (2 * (u[n] - u[first])) if stage else 1.0
        c["past"][n, : stage + 1] = total[n + 1] * du * np.array([share, 1 - share][: stage + 1])
    return linear(
        denoise, x_T, grid=grid, estimate="velocity", columns=c, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def heun3(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """Heun's method of order 3 along straight paths, for flows: three stages.

    Heun 1900: with stages at 0, 1/3 and 2/3 of the step in u = noise / (signal + noise), as on an
    even grid of a rectified flow,

        x_s = x_t + h (k_1 + 3 k_3) / 4,  k_3 at x_t + 2 h k_2 / 3,  k_2 at x_t + h k_1 / 3.

    With stages elsewhere it is the method of order 3 that has its stages there, which exists unless
    the first is at 2/3. Two steps that are left over are `midpoint`'s, a single one is `euler`'s.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.

    Raises:
      ValueError: fewer than 3 steps, or a first stage past 0.6 of its step.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.heun3(denoise, noise, grid=dj.grids.trailing(flow, 24)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    check_steps("heun3", grid, 3)
    total, u = _straight(grid)
    c = empty_columns(grid.steps, 3)
    for first in range(0, grid.steps, 3):
        stages = min(3, grid.steps - first)
        places = (u[first : first + stages] - u[first]) / (u[first + stages] - u[first])
        if stages == 3 and places[1] > 0.6:
            raise ValueError(
                f"heun3 needs the first of two stages before 0.6 of its step in noise / (signal + "
                f"noise), and point {first + 1} is at {places[1]:.4g}: take more steps, "
                'grids.with_stages(even_in="u", fractions=(1/3, 2/3)) or an even grid of a flow'
            )
        for stage, weights in enumerate(_runge_kutta(places)):
            n = first + stage
            c["start"][n] = stage == 0
            c["anchor"][n] = total[n + 1] / total[first]
            h = u[first + stages] - u[first]
            c["past"][n, : stage + 1] = total[n + 1] * h * weights[::-1]
    return linear(
        denoise, x_T, grid=grid, estimate="velocity", columns=c, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def _runge_kutta(places: np.ndarray) -> list[np.ndarray]:
    """Butcher's rows of the method of order 1 to 3 with stages at `places`, and its weights.

    (k,), the first of them 0 -> k vectors of length 1 to k: what the second stage weighs, what the
    third does, what the step does. They solve the conditions of order k (Hairer, Norsett & Wanner
    1993, section II.1).
    """
    if len(places) == 1:
        return [np.ones(1)]
    if len(places) == 2:
        return [places[1:], np.array([1 - 1 / (2 * places[1]), 1 / (2 * places[1])])]
    a, b = places[1:]
    weights = np.linalg.solve(np.vander(places, increasing=True).T, 1 / np.arange(1, 4))
    of_second = 1 / (6 * weights[2] * a)
    return [np.array([a]), np.array([b - of_second, of_second]), weights]


def rk4(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """The classical Runge-Kutta method along straight paths, for flows. Order 4.

    It takes the grid two steps at a time, the point between half-way in
    u = noise / (signal + noise), and evaluates four times, e.g. an even grid of a rectified flow.
    The last two steps, whose end is clean data where there is no velocity, are `midpoint`'s; a
    single step that is left over is `euler`'s.

    Args:
      denoise, x_T, grid, cond: as in `ancestral`.
      key: not used.
      keep_trajectory: whether to return every x_t, of all stages in their order.

    Raises:
      ValueError: fewer than 2 steps, or a stage that is not half-way.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.rk4(denoise, noise, grid=dj.grids.trailing(flow, 24)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    check_steps("rk4", grid, 2)
    total, u = _straight(grid)
    points, rows = [0], []  # of the expanded grid; (anchor, weights newest first) of its steps
    n = 0
    while n < grid.steps:
        if n + 1 == grid.steps:
            points.append(n + 1)
            rows.append((n, [u[n + 1] - u[n]]))
            n += 1
            continue
        du = u[n + 2] - u[n]
        if abs((u[n + 1] - u[n]) / du - 0.5) > 1e-6:
            raise ValueError(
                f"rk4 needs every second point of the grid half-way in noise / (signal + noise), "
                f"and point {n + 1} is at {(u[n + 1] - u[n]) / du:.4g} of its step: take "
                'grids.with_stages(even_in="u") or an even grid of a flow'
            )
        if grid.noise_scale[n + 2] == 0:
            points += [n + 1, n + 2]
            rows += [(n, [du / 2]), (n, [du])]
        else:
            points += [n + 1, n + 1, n + 2, n + 2]
            rows += [(n, [du / 2]), (n, [du / 2]), (n, [du])]
            rows += [(n, [du / 6, du / 3, du / 3, du / 6])]
        n += 2
    expanded = Grid(*(column[points] for column in grid))
    c = empty_columns(len(rows), 4)
    for i, (anchor, weights) in enumerate(rows):
        c["start"][i] = i == 0 or rows[i - 1][0] != anchor
        c["anchor"][i] = total[points[i + 1]] / total[anchor]
        c["past"][i, : len(weights)] = total[points[i + 1]] * np.array(weights)
    return linear(
        denoise, x_T, grid=expanded, estimate="velocity", columns=c, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip
