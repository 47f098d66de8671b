"""Multistep solvers: one evaluation a step, and the estimates of the last few steps.

The first steps have fewer estimates behind them and take lower orders. Where lambda is infinite, at
pure noise and at clean data, a step is `ddim`'s; solvers in rho have a finite end, rho = 0, and
keep their order there.
"""

from typing import Any

import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.linear import (
    check_order,
    half_log_snr,
    lagrange,
    linear,
    noise_to_signal,
    quadrature,
)
from diffjax.sampling.samplers.loop import Samples
from diffjax.schedules import Schedule
from diffjax.types import Data, PRNGKeys

Columns = dict[str, np.ndarray]


def _orders(nodes: np.ndarray, order: int) -> np.ndarray:
    """(N,): how many of the nodes n, n-1, ... are finite, without a gap; 1 to `order`.

    A step that ends at an infinite node is of order 1.
    """
    steps = np.arange(len(nodes) - 1)
    k = np.ones(len(steps), int)
    for back in range(1, order):
        k += (k == back) & (steps >= back) & np.isfinite(nodes[np.maximum(steps - back, 0)])
    return np.where(np.isfinite(nodes[1:]), k, 1)


def _groups(orders: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(k, the steps of that order)."""
    return [(int(k), np.flatnonzero(orders == k)) for k in np.unique(orders)]


def _exponential_adams(grid: Grid, order: int, *, eta: float, corrected: bool) -> Columns:
    """(2) of linear.py with polynomials in lambda; as an SDE's solver for eta > 0.

    The SDE's noise has eta times its usual variance; exp((1 + eta) lambda) takes the place of
    exp(lambda), and x_t is forgotten by exp(-eta h). Corrected, the second step restarts from
    x_T and integrates the line through both estimates over both steps: the first one's error falls
    from h^2 to h^3, at no evaluation.
    """
    lam, steps = half_log_snr(grid), grid.steps
    signal, noise = grid.scales
    h = np.diff(lam)
    of_x_t, of_anchor = noise[1:] / noise[:-1] * np.exp(-eta * h if eta else 0.0), np.zeros(steps)
    begin, orders = np.zeros(steps), _orders(lam, order)
    if corrected and steps > 1 and orders[1] > 1:
        begin[1] = lam[0] - lam[1]
        of_x_t[1], of_anchor[1] = 0.0, noise[2] / noise[0]
    past = np.zeros((steps, order))
    past[:, 0] = signal[1:]
    for k, n in _groups(np.where(np.isfinite(h), orders, 0)):
        if k:
            tau, weights = quadrature(begin[n], h[n])
            basis = lagrange(_last(lam, n, k) - lam[n, None], tau)
            factor = (1 + eta) * np.exp((1 + eta) * (tau - h[n, None]))
            past[n, :k] = signal[n + 1, None] * (basis * (factor * weights)[:, None]).sum(2)
    columns = {"x_t": of_x_t, "past": past}
    if corrected:
        columns |= {"anchor": of_anchor, "start": np.arange(steps) == 0}
    if eta:
        columns["std"] = noise[1:] * np.sqrt(-np.expm1(-2 * eta * h))
    return columns


def _dpm_solver_pp(grid: Grid, order: int, eta: float) -> Columns:
    """DPM-Solver++ as published, with k-diffusion's eta: 0 is the ODE, 1 the SDE."""
    lam, steps = half_log_snr(grid), grid.steps
    signal, noise = grid.scales
    past, of_x_t, std = np.zeros((steps, 3)), np.zeros(steps), np.zeros(steps)
    orders = _orders(lam, order)
    for n in range(steps):
        h = lam[n + 1] - lam[n]
        of_x_t[n] = noise[n + 1] / noise[n] * (np.exp(-eta * h) if eta else 1.0)
        std[n] = noise[n + 1] * np.sqrt(-np.expm1(-2 * eta * h)) if eta else 0.0
        whole = -signal[n + 1] * np.expm1(-(1 + eta) * h)
        past[n, 0] = whole
        k = orders[n]
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
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
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
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
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
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
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
    """(3) of linear.py: weigh(n, k) -> the integrals over drho of k Lagrange polynomials, (n, k).

    signal_s / signal_t x_t is written as signal_s (x_0 + rho_t eps), which is finite also where
    rho_t is not; there the step is `ddim`'s.
    """
    rho, steps = noise_to_signal(grid), grid.steps
    signal, noise = grid.scales
    past = np.zeros((steps, order))
    past[:, 0] = noise[1:]
    for k, n in _groups(_orders(nodes, order)):
        if k > 1:
            # Differences to the step of order 1 alone: no large numbers cancel.
            drho = (rho[n + 1] - rho[n])[:, None]
            change = weigh(n, k) / drho
            change[:, 0] -= 1
            past[n, :k] += signal[n + 1, None] * drho * change
    return {"x_0": signal[1:], "past": past}


def deis(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
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

        def weigh(n: np.ndarray, k: int) -> np.ndarray:
            x, weights = quadrature(rho[n], rho[n + 1])
            return (lagrange(_last(nodes, n, k), x) * weights[:, None]).sum(2)
    elif variable == "log_rho":
        with np.errstate(divide="ignore"):
            nodes = np.log(rho)

        def weigh(n: np.ndarray, k: int) -> np.ndarray:
            x, weights = quadrature(nodes[n], nodes[n + 1])
            return (lagrange(_last(nodes, n, k), x) * (weights * np.exp(x))[:, None]).sum(2)
    elif variable == "t":
        if schedule is None:
            raise ValueError('deis with variable="t" needs the grid\'s schedule: schedule=...')
        nodes = grid.t.astype(np.float64)
        low = schedule.t_min

        def weigh(n: np.ndarray, k: int) -> np.ndarray:
            # int l drho = [l rho] - int rho dl, and a schedule answers between its steps. What may
            # be left from t_min to clean data is taken with l as it is at t_min.
            at, end = _last(nodes, n, k), np.maximum(nodes[n + 1], low)
            x, weights = quadrature(nodes[n], end)
            signal, noise = schedule(x)
            inner = (noise / signal) * weights
            ends = lagrange(at, np.stack([nodes[n], end], axis=1))
            first = ends[:, :, 1] * rho[n + 1, None] - ends[:, :, 0] * rho[n, None]
            return first - (_lagrange_slopes(at, x) * inner[:, None]).sum(2)
    else:
        raise ValueError(f'variable must be "t", "rho" or "log_rho", not {variable!r}')
    return _adams(grid, order, nodes, weigh)


def _last(nodes: np.ndarray, n: np.ndarray, k: int) -> np.ndarray:
    """(n, k): the nodes n, n-1, ..., n-k+1."""
    return nodes[n[:, None] - np.arange(k)]


def _lagrange_slopes(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Derivatives of `lagrange`."""
    k = nodes.shape[1]
    slopes = np.zeros((*nodes.shape, x.shape[1]))
    for j in range(k):
        for i in set(range(k)) - {j}:
            product = 1 / (nodes[:, [j]] - nodes[:, [i]])
            for m in set(range(k)) - {i, j}:
                product = product * (x - nodes[:, [m]]) / (nodes[:, [j]] - nodes[:, [m]])
            slopes[:, j] += product
    return slopes


def lms(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
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
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
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

    def weigh(n: np.ndarray, k: int) -> np.ndarray:
        return (rho[n + 1] - rho[n])[:, None] * ADAMS_BASHFORTH[k - 1]

    columns = _adams(grid, order, np.arange(grid.steps + 1.0), weigh)
    return linear(
        denoise, x_T, grid=grid, estimate="eps", columns=columns, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip
