"""Multistep solvers on eps in rho: one evaluation a step, and the estimates of the last few steps.

The first steps have fewer estimates behind them and take lower orders. From pure noise a step is
`ddim`'s; at clean data rho = 0 is finite, and solvers in rho keep their order there. Those in
lambda are in dpm_multistep.py.
"""

from typing import Any

import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.linear import (
    Columns,
    available_orders,
    check_order,
    lagrange,
    last_nodes,
    linear,
    noise_to_signal,
    quadrature,
    steps_by_order,
)
from diffjax.sampling.samplers.loop import Samples
from diffjax.schedules import Schedule
from diffjax.types import Data, PRNGKeys


def _adams(grid: Grid, order: int, nodes: np.ndarray, weigh: Any) -> Columns:
    """(3) of linear.py: weigh(n, k) -> the integrals over drho of k Lagrange polynomials, (n, k).

    signal_s / signal_t x_t is written as signal_s (x_0 + rho_t eps), which is finite also where
    rho_t is not; there the step is `ddim`'s.
    """
    rho, steps = noise_to_signal(grid), grid.steps
    signal, noise = grid.scales
    past = np.zeros((steps, order))
    past[:, 0] = noise[1:]
    for k, n in steps_by_order(available_orders(nodes, order)):
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

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> grid = dj.grids.trailing(flow, 50)
    >>> x_0 = dj.samplers.deis(denoise, noise, grid=grid, schedule=flow).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
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
            return (lagrange(last_nodes(nodes, n, k), x) * weights[:, None]).sum(2)
    elif variable == "log_rho":
        with np.errstate(divide="ignore"):
            nodes = np.log(rho)

        def weigh(n: np.ndarray, k: int) -> np.ndarray:
            x, weights = quadrature(nodes[n], nodes[n + 1])
            return (lagrange(last_nodes(nodes, n, k), x) * (weights * np.exp(x))[:, None]).sum(2)
    elif variable == "t":
        if schedule is None:
            raise ValueError('deis with variable="t" needs the grid\'s schedule: schedule=...')
        nodes = grid.t.astype(np.float64)
        low = schedule.t_min

        def weigh(n: np.ndarray, k: int) -> np.ndarray:
            # int l drho = [l rho] - int rho dl, and a schedule answers between its steps. What may
            # be left from t_min to clean data is taken with l as it is at t_min.
            at, end = last_nodes(nodes, n, k), np.maximum(nodes[n + 1], low)
            x, weights = quadrature(nodes[n], end)
            signal, noise = schedule(x)
            inner = (noise / signal) * weights
            ends = lagrange(at, np.stack([nodes[n], end], axis=1))
            first = ends[:, :, 1] * rho[n + 1, None] - ends[:, :, 0] * rho[n, None]
            return first - (_lagrange_slopes(at, x) * inner[:, None]).sum(2)
    else:
        raise ValueError(f'variable must be "t", "rho" or "log_rho", not {variable!r}')
    return _adams(grid, order, nodes, weigh)


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

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.lms(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
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

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.ipndm(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
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
