"""Singlestep solvers: every step has stages of its own and keeps nothing from the step before.

One evaluation is one step of the grid, as for the multistep solvers: a solver of k stages takes the
grid k steps at a time, and the points between are its stages. `grids.with_stages` puts them where
the papers do. What is left over at the end takes lower orders, and so does the step to clean data,
which is `ddim`'s where lambda is infinite; steps from nearly pure noise are `ddim`'s, too.
"""

from typing import Any

import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.linear import (
    NEARLY_PURE_NOISE,
    Columns,
    check_steps,
    half_log_snr,
    linear,
    noise_to_signal,
)
from diffjax.sampling.samplers.loop import Samples
from diffjax.types import Data, PRNGKeys


def _groups(grid: Grid, stages: int, nodes: np.ndarray) -> list[tuple[int, int]]:
    """(first step, number of stages) of all groups.

    Steps from nearly pure noise, or with an infinite lambda at an end, are alone.
    """
    groups, n = [], 0
    while n < grid.steps:
        k = min(stages, grid.steps - n)
        if nodes[n] < NEARLY_PURE_NOISE:
            k = 1
        while k > 1 and not np.isfinite(nodes[n : n + k + 1]).all():
            k -= 1
        groups.append((n, k))
        n += k
    return groups


def empty_columns(steps: int, k: int) -> Columns:
    """Those of `linear` with k stages and an anchor, all 0."""
    return {
        "x_t": np.zeros(steps), "x_0": np.zeros(steps), "anchor": np.zeros(steps),
        "past": np.zeros((steps, k)), "start": np.zeros(steps),
    }  # fmt: skip


def _single(columns: Columns, n: int, grid: Grid, estimate: str) -> None:
    """Step n as `ddim`'s, the start of a group."""
    signal, noise = grid.scales
    columns["start"][n] = 1
    if estimate == "eps":
        columns["x_0"][n], columns["past"][n, 0] = signal[n + 1], noise[n + 1]
    else:
        columns["x_t"][n] = noise[n + 1] / noise[n]
        columns["past"][n, 0] = signal[n + 1] - noise[n + 1] / noise[n] * signal[n]


def _dpm_solver(grid: Grid, order: int, estimate: str) -> Columns:
    """DPM-Solver-2 and -3 on eps, DPM-Solver++(2S) and (3S) on x_0."""
    lam, (signal, noise) = half_log_snr(grid), grid.scales
    c = empty_columns(grid.steps, order)
    for n, k in _groups(grid, order, lam):
        _single(c, n, grid, estimate)
        for stage in range(1, k):
            m = n + stage
            h = lam[m + 1] - lam[n]
            r = (lam[m] - lam[n]) / h  # of the stage before this step
            if estimate == "x_0":
                c["anchor"][m] = noise[m + 1] / noise[n]
                whole = -signal[m + 1] * np.expm1(-h)
            else:
                c["anchor"][m] = signal[m + 1] / signal[n]
                whole = -noise[m + 1] * np.expm1(h)
            # What the stage before weighs; of three, also the last leans on that one alone.
            slope = whole / (2 * r)
            if k == 3:
                bend = np.expm1(-h) / h + 1 if estimate == "x_0" else 1 - np.expm1(h) / h
                slope = (signal if estimate == "x_0" else noise)[m + 1] * bend / r
            c["past"][m, 0] = slope
            c["past"][m, stage] = whole - slope
    return c


def dpm_solver_2(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """DPM-Solver-2: two stages on eps. Order 2.

    Lu et al. 2022a, "DPM-Solver", algorithm 4 (any r_1; theirs is 1/2 in lambda).

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.

    Raises:
      ValueError: fewer than 2 steps.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> grid = dj.grids.with_stages(flow, dj.grids.trailing(flow, 40))
    >>> x_0 = dj.samplers.dpm_solver_2(denoise, noise, grid=grid).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    check_steps("dpm_solver_2", grid, 2)
    return linear(
        denoise, x_T, grid=grid, estimate="eps", columns=_dpm_solver(grid, 2, "eps"),
        cond=cond, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def dpm_solver_3(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """DPM-Solver-3: three stages on eps. Order 3 with stages at 1/3 and 2/3 in lambda.

    Lu et al. 2022a, algorithm 5 (any r_1 < r_2; the order is 3 where r_2 = 2/3).

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.

    Raises:
      ValueError: fewer than 3 steps.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> grid = dj.grids.with_stages(flow, dj.grids.trailing(flow, 40), fractions=(1 / 3, 2 / 3))
    >>> x_0 = dj.samplers.dpm_solver_3(denoise, noise, grid=grid).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    check_steps("dpm_solver_3", grid, 3)
    return linear(
        denoise, x_T, grid=grid, estimate="eps", columns=_dpm_solver(grid, 3, "eps"),
        cond=cond, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def dpm_solver_pp_2s(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """DPM-Solver++(2S): two stages on x_0. Order 2.

    Lu et al. 2022b, algorithm 1.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.

    Raises:
      ValueError: fewer than 2 steps.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> grid = dj.grids.with_stages(flow, dj.grids.trailing(flow, 40))
    >>> x_0 = dj.samplers.dpm_solver_pp_2s(denoise, noise, grid=grid).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    check_steps("dpm_solver_pp_2s", grid, 2)
    return linear(
        denoise, x_T, grid=grid, estimate="x_0", columns=_dpm_solver(grid, 2, "x_0"),
        cond=cond, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def dpm_solver_pp_3s(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """DPM-Solver++(3S): three stages on x_0. Order 3 with stages at 1/3 and 2/3 in lambda.

    `dpm_solver_3` with data prediction, as the code of Lu et al. 2022b has it
    (`singlestep_dpm_solver_third_update`), any r_1 < r_2; the order is 3 where r_2 = 2/3.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.

    Raises:
      ValueError: fewer than 3 steps.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> grid = dj.grids.with_stages(flow, dj.grids.trailing(flow, 40), fractions=(1 / 3, 2 / 3))
    >>> x_0 = dj.samplers.dpm_solver_pp_3s(denoise, noise, grid=grid).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    check_steps("dpm_solver_pp_3s", grid, 3)
    return linear(
        denoise, x_T, grid=grid, estimate="x_0", columns=_dpm_solver(grid, 3, "x_0"),
        cond=cond, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def dpm2(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """The midpoint rule in rho, with the geometric mean as the midpoint. Order 2.

    Karras et al. 2022's reading of DPM-Solver-2, k-diffusion's `sample_dpm_2` where the stages lie
    at half of the steps in lambda.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.

    Raises:
      ValueError: fewer than 2 steps.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> grid = dj.grids.with_stages(flow, dj.grids.trailing(flow, 40))
    >>> x_0 = dj.samplers.dpm2(denoise, noise, grid=grid).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    check_steps("dpm2", grid, 2)
    lam, rho, signal = half_log_snr(grid), noise_to_signal(grid), grid.signal_scale
    c = empty_columns(grid.steps, 2)
    for n, k in _groups(grid, 2, lam):
        _single(c, n, grid, "eps")
        if k == 2:
            c["anchor"][n + 1] = signal[n + 2] / signal[n]
            c["past"][n + 1, 0] = signal[n + 2] * (rho[n + 2] - rho[n])
    return linear(
        denoise, x_T, grid=grid, estimate="eps", columns=c, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip
