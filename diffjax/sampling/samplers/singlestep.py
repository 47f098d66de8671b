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
    check_steps,
    half_log_snr,
    linear,
    noise_to_signal,
)
from diffjax.sampling.samplers.loop import Samples
from diffjax.types import Data, PRNGKeys

Columns = dict[str, np.ndarray]


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


def _columns(steps: int, k: int) -> Columns:
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
    c = _columns(grid.steps, order)
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
    """
    del key
    check_steps("dpm2", grid, 2)
    lam, rho, signal = half_log_snr(grid), noise_to_signal(grid), grid.signal_scale
    c = _columns(grid.steps, 2)
    for n, k in _groups(grid, 2, lam):
        _single(c, n, grid, "eps")
        if k == 2:
            c["anchor"][n + 1] = signal[n + 2] / signal[n]
            c["past"][n + 1, 0] = signal[n + 2] * (rho[n + 2] - rho[n])
    return linear(
        denoise, x_T, grid=grid, estimate="eps", columns=c, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


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
    """
    del key
    check_steps("midpoint", grid, 2)
    total, u = _straight(grid)
    c = _columns(grid.steps, 2)
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
    """
    del key
    check_steps("heun3", grid, 3)
    total, u = _straight(grid)
    c = _columns(grid.steps, 3)
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
    c = _columns(len(rows), 4)
    for i, (anchor, weights) in enumerate(rows):
        c["start"][i] = i == 0 or rows[i - 1][0] != anchor
        c["anchor"][i] = total[points[i + 1]] / total[anchor]
        c["past"][i, : len(weights)] = total[points[i + 1]] * np.array(weights)
    return linear(
        denoise, x_T, grid=expanded, estimate="velocity", columns=c, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip
