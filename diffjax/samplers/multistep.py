"""Multistep solvers: one evaluation a step, and the estimates of the last few steps.

The first steps have fewer estimates behind them and take lower orders. Where lambda is infinite, at
pure noise and at clean data, a step is `ddim`'s; solvers in rho have a finite end, rho = 0, and
keep their order there.
"""

from typing import Any

import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.samplers.linear import (
    NEARLY_PURE_NOISE,
    check_order,
    half_log_snr,
    lagrange,
    linear,
    noise_to_signal,
    quadrature,
)
from diffjax.samplers.loop import Samples
from diffjax.schedules import Array, Schedule

Columns = dict[str, np.ndarray]


def _usable(nodes: np.ndarray, n: int, order: int) -> int:
    """How many of the nodes n, n-1, ... are finite, without a gap, and at most `order`."""
    k = 1
    while k < order and k <= n and np.isfinite(nodes[n - k]):
        k += 1
    return k


def _exponential_adams(grid: Grid, order: int, *, eta: float, corrected: bool) -> Columns:
    """(2) of linear.py with polynomials in lambda; as an SDE's solver for eta > 0.

    The SDE's noise has eta times its usual variance; exp((1 + eta) lambda) stands in place of
    exp(lambda), and x_t is forgotten by exp(-eta h). Corrected, the second step starts anew from
    x_T and integrates the line through both estimates over both steps: the first one's error falls
    from h^2 to h^3, at no evaluation.
    """
    lam, steps = half_log_snr(grid), grid.steps
    signal, noise = grid.scales
    past, of_x_t, of_anchor = np.zeros((steps, order)), np.zeros(steps), np.zeros(steps)
    std = np.zeros(steps)
    for n in range(steps):
        h = lam[n + 1] - lam[n]
        of_x_t[n] = noise[n + 1] / noise[n] * np.exp(-eta * h if eta else 0.0)
        std[n] = noise[n + 1] * np.sqrt(-np.expm1(-2 * eta * h)) if eta else 0.0
        if not np.isfinite(h):
            past[n, 0] = signal[n + 1]
            continue
        k = _usable(lam, n, order)
        begin = 0.0
        if corrected and n == 1 and k > 1:
            begin = lam[0] - lam[1]
            of_x_t[n], of_anchor[n] = 0.0, noise[2] / noise[0]
        tau, weights = quadrature(begin, h)
        basis = lagrange(lam[n - np.arange(k)] - lam[n], tau)
        factor = signal[n + 1] * (1 + eta) * np.exp((1 + eta) * (tau - h))
        past[n, :k] = (basis * factor * weights).sum(1)
    columns = {"x_t": of_x_t, "past": past}
    if corrected:
        columns |= {"anchor": of_anchor, "start": np.arange(steps) == 0}
    return columns | ({"std": std} if eta else {})


def _dpm_solver_pp(grid: Grid, order: int, eta: float) -> Columns:
    """DPM-Solver++ as published, with k-diffusion's eta: 0 is the ODE, 1 the SDE."""
    lam, steps = half_log_snr(grid), grid.steps
    signal, noise = grid.scales
    past, of_x_t, std = np.zeros((steps, 3)), np.zeros(steps), np.zeros(steps)
    for n in range(steps):
        h = lam[n + 1] - lam[n]
        of_x_t[n] = noise[n + 1] / noise[n] * (np.exp(-eta * h) if eta else 1.0)
        std[n] = noise[n + 1] * np.sqrt(-np.expm1(-2 * eta * h)) if eta else 0.0
        whole = -signal[n + 1] * np.expm1(-(1 + eta) * h)
        past[n, 0] = whole
        k = _usable(lam, n, order) if np.isfinite(h) else 1
        if k == 2:
            slope = whole * h / (2 * (lam[n] - lam[n - 1]))
            past[n, :2] += [slope, -slope]
        if k == 3:
            r0, r1 = (lam[n] - lam[n - 1]) / h, (lam[n - 1] - lam[n - 2]) / h
            d0, d1 = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
            first = d0 + (d0 - d1) * r0 / (r0 + r1)
            second = (d0 - d1) / (r0 + r1)
            z = (1 + eta) * h
            phi_2 = np.expm1(-z) / z + 1
            past[n] += signal[n + 1] * (phi_2 * first - (phi_2 / z - 0.5) * second)
    return {"x_t": of_x_t, "past": past[:, :order]} | ({"std": std} if eta else {})


def dpm_solver_pp_2m(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """DPM-Solver++(2M): multistep, order 2, one evaluation a step.

    Lu et al. 2022b, "DPM-Solver++", algorithm 2. With h the step in log(signal / noise) and h' the
    one before, x_0 is extrapolated to D = x_0 + h / (2 h') (x_0 - previous x_0), and

        x_s = noise_s / noise_t x_t - signal_s (exp(-h) - 1) D.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
    """
    del key
    return linear(
        denoise, x_T, grid=grid, estimate="x_0", columns=_dpm_solver_pp(grid, 2, 0.0),
        cond=cond, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def dpm_solver_pp_3m(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    published: bool = False,
) -> Samples:
    """DPM-Solver++(3M): the parabola through the last three estimates of x_0. Order 3.

    As published (Lu et al. 2022b's code, and k-diffusion and diffusers after it) the parabola's
    second-difference term has half of its size, so that the order is 2. Here the parabola is
    integrated exactly, and the second step corrects the first, which would else cap the order at 2.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
      published: whether to take the published coefficients instead.
    """
    del key
    if published:
        columns = _dpm_solver_pp(grid, 3, 0.0)
    else:
        columns = _exponential_adams(grid, 3, eta=0.0, corrected=True)
    return linear(
        denoise, x_T, grid=grid, estimate="x_0", columns=columns, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def sde_dpm_solver_pp(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    order: int = 2,
    eta: float = 1.0,
    published: bool = True,
) -> Samples:
    """SDE-DPM-Solver++: the multistep solvers with fresh noise in every step.

    Lu et al. 2022b, section 5, for orders 1 and 2M; 3M is k-diffusion's. Exact in law for data that
    is one point, whatever the steps.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: as in `ancestral`; needed when eta > 0.
      order: 1, 2 or 3, that of the part without noise.
      eta: the noise's share: 0 for the ODE's solver, 1 for the SDE that is the time reversal of the
        forward process.
      published: whether to take the published coefficients, or the exact integrals of the
        polynomials.

    Raises:
      ValueError: another order, a negative eta, no key.
    """
    check_order("sde_dpm_solver_pp", order, 3)
    if eta < 0:
        raise ValueError(f"eta must be at least 0, not {eta}")
    if published:
        columns = _dpm_solver_pp(grid, order, eta)
    else:
        columns = _exponential_adams(grid, order, eta=eta, corrected=False)
    return linear(
        denoise, x_T, grid=grid, estimate="x_0", columns=columns, key=key, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def _adams(grid: Grid, order: int, nodes: np.ndarray, weigh: Any) -> Columns:
    """(3) of linear.py: weigh(n, k) -> the integrals over drho of k Lagrange polynomials.

    signal_s / signal_t x_t is written as signal_s (x_0 + rho_t eps), which is finite also where
    rho_t is not; there the step is `ddim`'s.
    """
    rho, steps = noise_to_signal(grid), grid.steps
    signal, noise = grid.scales
    past = np.zeros((steps, order))
    for n in range(steps):
        past[n, 0] = noise[n + 1]
        if n and np.isfinite(rho[n]):
            # Differences to the step of order 1 alone: no large numbers cancel.
            k = _usable(nodes, n, order)
            change = weigh(n, k) / (rho[n + 1] - rho[n])
            change[0] -= 1
            past[n, :k] += signal[n + 1] * (rho[n + 1] - rho[n]) * change
    return {"x_0": signal[1:], "past": past}


def deis(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    order: int = 3,
    variable: str = "t",
    schedule: Schedule | None = None,
) -> Samples:
    """DEIS: eps as a polynomial of the last estimates, integrated exactly over the step.

    Zhang & Chen 2022, "Fast sampling of diffusion models with exponential integrator", equation 15:
    "tAB" with polynomials in t, "rhoAB" in rho.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
      order: 1 (DDIM) to 3.
      variable: "t", "rho" or "log_rho" (diffusers' choice; its last step is of order 1).
      schedule: the grid's; needed for "t".

    Raises:
      ValueError: another order or variable, or "t" without the schedule.
    """
    del key
    check_order("deis", order, 3)
    return linear(
        denoise, x_T, grid=grid, estimate="eps", columns=_deis(grid, order, variable, schedule),
        cond=cond, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def _deis(grid: Grid, order: int, variable: str, schedule: Schedule | None) -> Columns:
    rho = noise_to_signal(grid)
    if variable == "rho":
        nodes = rho

        def weigh(n: int, k: int) -> np.ndarray:
            x, weights = quadrature(rho[n], rho[n + 1])
            return (lagrange(nodes[n - np.arange(k)], x) * weights).sum(1)
    elif variable == "log_rho":
        with np.errstate(divide="ignore"):
            nodes = np.log(rho)

        def weigh(n: int, k: int) -> np.ndarray:
            if not np.isfinite(nodes[n + 1]):
                return (rho[n + 1] - rho[n]) * (np.arange(k) == 0)
            x, weights = quadrature(nodes[n], nodes[n + 1])
            return (lagrange(nodes[n - np.arange(k)], x) * weights * np.exp(x)).sum(1)
    elif variable == "t":
        if schedule is None:
            raise ValueError('deis with variable="t" needs the grid\'s schedule: schedule=...')
        nodes = grid.t.astype(np.float64)
        low = schedule.t_min

        def weigh(n: int, k: int) -> np.ndarray:
            # int l drho = [l rho] - int rho dl, and a schedule answers between its steps. What may
            # be left from t_min to clean data is taken with l as it is at t_min.
            at = nodes[n - np.arange(k)]
            end = max(nodes[n + 1], low)
            x, weights = quadrature(nodes[n], end)
            signal, noise = schedule(x)
            inner = (noise / signal) * weights
            ends = lagrange(at, np.array([nodes[n], end]))
            slopes = _lagrange_slopes(at, x)
            first = ends[:, 1] * rho[n + 1] - ends[:, 0] * rho[n]
            return first - (slopes * inner).sum(1)
    else:
        raise ValueError(f'variable must be "t", "rho" or "log_rho", not {variable!r}')
    return _adams(grid, order, nodes, weigh)


def _lagrange_slopes(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Derivatives of `lagrange`."""
    slopes = np.zeros((len(nodes), len(x)))
    for j, own in enumerate(nodes):
        for i, left_out in enumerate(nodes):
            if i != j:
                rest = [m for k, m in enumerate(nodes) if k not in (i, j)]
                product = np.prod([(x - m) / (own - m) for m in rest], axis=0)
                slopes[j] += product / (own - left_out)
    return slopes


def lms(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    order: int = 4,
) -> Samples:
    """Linear multistep in rho = noise / signal: Adams and Bashforth's method for uneven steps.

    k-diffusion's `sample_lms`: `deis` with polynomials in rho.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
      order: 1 to 4. The first step's error, h^2, caps what is seen at 2.

    Raises:
      ValueError: another order.
    """
    del key
    check_order("lms", order, 4)
    return linear(
        denoise, x_T, grid=grid, estimate="eps", columns=_deis(grid, order, "rho", None),
        cond=cond, keep_trajectory=keep_trajectory,
    )  # fmt: skip


# Adams and Bashforth's weights for even steps, newest first.
ADAMS_BASHFORTH = (
    np.array([1.0]),
    np.array([3, -1]) / 2,
    np.array([23, -16, 5]) / 12,
    np.array([55, -59, 37, -9]) / 24,
)


def ipndm(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    order: int = 4,
) -> Samples:
    """iPNDM: DDIM's step with eps extrapolated by Adams and Bashforth's weights for even steps.

    Zhang & Chen 2022, appendix H.2, after Liu et al. 2022 (PNDM). The weights know nothing of how
    rho bends between the steps, so the observed order is 2 for every order above 1; `deis` and
    `lms` are what it becomes when they do.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
      order: 1 (DDIM) to 4.

    Raises:
      ValueError: another order.
    """
    del key
    check_order("ipndm", order, 4)
    rho = noise_to_signal(grid)

    def weigh(n: int, k: int) -> np.ndarray:
        return (rho[n + 1] - rho[n]) * ADAMS_BASHFORTH[k - 1]

    columns = _adams(grid, order, np.arange(grid.steps + 1.0), weigh)
    return linear(
        denoise, x_T, grid=grid, estimate="eps", columns=columns, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def plms(
    denoise: Denoiser,
    x_T: Array,
    *,
    grid: Grid,
    key: Array | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """PLMS: `ipndm` of order 4 whose first step is taken twice, by the improved Euler method.

    Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds" (S-PNDM's start,
    F-PNDM's multistep part), as latent diffusion's code has it. One evaluation more than steps.
    From nearly pure noise, where DDIM's step can't be averaged, and to clean data the start is
    `ddim`'s.

    Args:
      denoise, x_T, grid, cond: as in `ancestral`.
      key: not used.
      keep_trajectory: whether to return every x_t, that of the first guess as well.
    """
    del key
    lam = half_log_snr(grid)
    if not (lam[0] > NEARLY_PURE_NOISE and np.isfinite(lam[1])):
        return ipndm(denoise, x_T, grid=grid, cond=cond, keep_trajectory=keep_trajectory)
    points = np.append([0, 1], np.arange(1, grid.steps + 1))
    walk = Grid(*(column[points] for column in grid))
    rho, signal, noise = noise_to_signal(walk), *walk.scales
    steps = walk.steps
    past, of_x_0, of_anchor = np.zeros((steps, 5)), signal[1:].copy(), np.zeros(steps)
    past[:, 0] = noise[1:]
    # The second step starts again from x_T, with the mean of both estimates.
    of_x_0[1], of_anchor[1] = 0.0, signal[1] / signal[0]
    past[1, :2] = signal[1] * (rho[1] - rho[0]) / 2
    for n in range(2, steps):
        weights = ADAMS_BASHFORTH[min(n, 4) - 1]
        # The guess at the first point, estimate number 1, is passed over.
        places = [j for j in range(5) if n - j != 1][: len(weights)]
        past[n, places] += signal[n + 1] * (rho[n + 1] - rho[n]) * weights
        past[n, 0] -= signal[n + 1] * (rho[n + 1] - rho[n])
    columns = {
        "x_0": of_x_0, "anchor": of_anchor, "past": past, "start": np.arange(steps) == 0,
    }  # fmt: skip
    return linear(
        denoise, x_T, grid=walk, estimate="eps", columns=columns, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip
