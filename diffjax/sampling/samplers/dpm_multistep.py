"""Multistep solvers in lambda: DPM-Solver on eps, DPM-Solver++ on x_0, and the latter's SDE.

The first steps have fewer estimates behind them and take lower orders. Where lambda is infinite, at
pure noise and at clean data, a step is `ddim`'s.

(2) and (3) of linear.py are one formula with signal and noise exchanged: with lambda' = -lambda,
(3) in lambda is

    x_s = signal_s / signal_t x_t + signal_s int exp(-lambda) eps d(-lambda),

which is (2) of a grid whose signal is the noise and whose noise is the signal. So the columns on
eps are those on x_0 of the exchanged grid.
"""

from typing import Any

import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.linear import (
    NEARLY_PURE_NOISE,
    Columns,
    available_orders,
    check_order,
    half_log_snr,
    lagrange,
    last_nodes,
    linear,
    quadrature,
    steps_by_order,
)
from diffjax.sampling.samplers.loop import Samples
from diffjax.types import Data, PRNGKeys


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
    begin, orders = np.zeros(steps), available_orders(lam, order)
    if corrected and steps > 1 and orders[1] > 1:
        begin[1] = lam[0] - lam[1]
        of_x_t[1], of_anchor[1] = 0.0, noise[2] / noise[0]
    past = np.zeros((steps, order))
    past[:, 0] = signal[1:]
    for k, n in steps_by_order(np.where(np.isfinite(h), orders, 0)):
        if k:
            tau, weights = quadrature(begin[n], h[n])
            basis = lagrange(last_nodes(lam, n, k) - lam[n, None], tau)
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
    orders = available_orders(lam, order)
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


def _on_eps(grid: Grid, order: int, columns: Columns) -> Columns:
    """Columns on x_0 of the exchanged grid, as columns on eps of the grid.

    signal_s / signal_t x_t is written as signal_s (x_0 + noise_t / signal_t eps), so that a step of
    order 1 is `ddim`'s, from pure noise and to clean data, too.
    """
    signal, noise = grid.scales
    single = available_orders(half_log_snr(grid), order) == 1
    past = np.zeros((grid.steps, order))
    past[:, 0] = noise[1:]
    past[~single] = columns["past"][~single]
    past[~single, 0] += (columns["x_t"] * noise[:-1])[~single]
    return {"x_0": signal[1:], "past": past}


def _exchanged(grid: Grid) -> Grid:
    return Grid(grid.t, grid.noise_scale, grid.signal_scale)


def dpm_solver_2m(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """Multistep DPM-Solver of order 2, on eps; one evaluation a step.

    The code of Lu et al. 2022a (`multistep_dpm_solver_second_update`): with h and h' as in
    `dpm_solver_pp_2m`, eps is extrapolated to D = eps + h / (2 h') (eps - previous eps), and

        x_s = signal_s / signal_t x_t - noise_s (exp(h) - 1) D.

    With the line through both eps integrated exactly it is `deis` in log_rho of order 2.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.dpm_solver_2m(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        columns = _on_eps(grid, 2, _dpm_solver_pp(_exchanged(grid), 2, 0.0))
    return linear(
        denoise, x_T, grid=grid, estimate="eps", columns=columns, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def dpm_solver_3m(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    published: bool = False,
) -> Samples:
    """Multistep DPM-Solver of order 3, on eps: `dpm_solver_pp_3m` with the roles exchanged.

    As published (`multistep_dpm_solver_third_update` of Lu et al. 2022a's code) the parabola's
    second-difference term has half of its size, so that the order is 2. Here the parabola is
    integrated exactly (`deis` in log_rho of order 3), and the second step corrects the first,
    unless that came from nearly pure noise.

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      key: not used.
      published: whether to take the published coefficients instead.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.dpm_solver_3m(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    exchanged = _exchanged(grid)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if published:
            on_x_0 = _dpm_solver_pp(exchanged, 3, 0.0)
        else:
            on_x_0 = _exponential_adams(exchanged, 3, eta=0.0, corrected=False)
            _correct_the_first_step(exchanged, on_x_0["past"])
        columns = _on_eps(grid, 3, on_x_0)
    return linear(
        denoise, x_T, grid=grid, estimate="eps", columns=columns, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def _correct_the_first_step(exchanged: Grid, past: np.ndarray) -> None:
    """Adds to the second step what the first left out: the slope of the line through both eps."""
    lam, (signal, noise) = half_log_snr(exchanged), exchanged.scales
    if exchanged.steps < 2 or not np.isfinite(lam[:3]).all() or -lam[0] < NEARLY_PURE_NOISE:
        return
    h = lam[1:2] - lam[0]
    tau, weights = quadrature(np.zeros(1), h)
    slope = signal[1] * float((tau / h * np.exp(tau - h) * weights).sum())
    past[1, :2] += noise[2] / noise[1] * slope * np.array([1, -1])


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

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.dpm_solver_pp_2m(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
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

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.dpm_solver_pp_3m(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
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

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), key=jax.random.key(1))
    >>> x_0 = dj.samplers.sde_dpm_solver_pp(denoise, noise, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
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
