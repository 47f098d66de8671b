"""SA-Solver: a stochastic Adams predictor, and a corrector that costs no evaluation."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.linear import (
    check_order,
    half_log_snr,
    lagrange,
    noise_to_signal,
    quadrature,
)
from diffjax.sampling.samplers.loop import NoiseFn, Samples, require_key, run
from diffjax.types import Array, Data, PRNGKeys


def sa_solver(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float = 1.0,
    between: tuple[float, float] = (0.0, math.inf),
    published: bool = True,
) -> Samples:
    r"""SA-Solver on x_0: Adams' methods for the diffusion SDEs with noise of strength tau.

    Xue et al. 2023, "SA-Solver: stochastic Adams solver for fast sampling of diffusion models",
    equations 14 and 17, algorithm 1. With lambda = log(signal / noise), h a step's and
    a = 1 + tau^2,

        x_s = noise_s / noise_t exp(-tau^2 h) x_t + noise_s sqrt(1 - exp(-2 tau^2 h)) z
              + signal_s int a exp(a (lambda - lambda_s)) x_0 dlambda,

    where a polynomial through the last estimates takes the place of x_0. The predictor's has those
    at x_t and before; when x_s has been evaluated, the corrector takes the step again, with the
    same z, from the corrected x_t, and a polynomial that has the new estimate, too. Orders 1 to 3
    (predictor) and 4 (corrector) count the estimates. Steps where lambda is infinite, at pure noise
    and to clean data, are `ddim`'s, with the SDE's noise, and not corrected; the end is not either.

    Args:
      denoise, x_T, grid, cond: as in `ancestral`.
      key: as in `ancestral`; needed when tau > 0.
      keep_trajectory: whether to return every x_t, as predicted.
      predictor_order: 1 to 3.
      corrector_order: 1 to 4.
      tau: 0 for the probability-flow ODE, 1 for the SDE that is the time reversal.
      between: (lowest, highest) noise / signal at which steps begin that have noise; tau is 0 in
        others. The paper takes (0.05, 1) on CIFAR-10.
      published: whether lines, of order 2, are integrated as in the authors' code, where the slope
        has the weight a h^2 / 2, or exactly; the difference is of order 3 in h.

    Raises:
      ValueError: another order, a negative tau, an empty range, no key.

    >>> import jax, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (32, 32))
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> options = dict(grid=dj.grids.trailing(flow, 50), key=jax.random.key(1))
    >>> x_0 = dj.samplers.sa_solver(denoise, noise, **options).x_0
    >>> print(x_0.mean().round(1), x_0.std().round(1))  # the data's
    1.0 0.5
    """
    check_order("sa_solver's predictor", predictor_order, 3)
    check_order("sa_solver's corrector", corrector_order, 4)
    if not tau >= 0:
        raise ValueError(f"tau must be at least 0, not {tau}")
    low, high = between
    if not low < high:
        raise ValueError(f"between must be (lowest, highest) with lowest < highest, not {between}")
    if tau > 0:
        require_key(key, "sa_solver with tau > 0")
    rho = noise_to_signal(grid)[:-1]
    squares = np.where((low <= rho) & (rho <= high), tau**2, 0.0)
    columns = _columns(grid, predictor_order, corrector_order, squares, published)
    remembered = max(predictor_order, corrector_order - 1)

    def step(
        carry: tuple[Data, Data, tuple[Data, ...]],
        x_t: Data,
        c: dict[str, Array],
        draw_noise: NoiseFn,
    ) -> tuple[tuple[Data, Data, tuple[Data, ...]], Data]:
        before, z, past = carry
        recent = (denoise(x_t, c["t"], cond).x_0, *past)
        x_t = c["keep"] * x_t + c["of_before"] * before + c["of_last_z"] * z
        x_t += sum(c["corrector"][j] * recent[j] for j in range(corrector_order))
        x_s = c["of_x_t"] * x_t + sum(c["predictor"][j] * recent[j] for j in range(predictor_order))
        if tau > 0:
            z = draw_noise(0)
            x_s += c["of_z"] * z
        return (x_t, z, recent[:remembered]), x_s

    zeros = jnp.zeros_like(x_T)
    return run(
        step, x_T, grid=grid, coefficients=columns, carry=(zeros, zeros, (zeros,) * remembered),
        key=key if tau > 0 else None, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def _columns(
    grid: Grid, predictor_order: int, corrector_order: int, squares: np.ndarray, published: bool
) -> dict[str, np.ndarray]:
    """Both formulas of every step; `corrector` weighs x_0 at x_t first, then those before.

    squares: (N,) tau^2 of each step.
    """
    lam, steps = half_log_snr(grid), grid.steps
    signal, noise = grid.scales
    of_x_t, of_z = noise[1:] / noise[:-1], np.zeros(steps)
    predictor, corrector = np.zeros((steps, predictor_order)), np.zeros((steps, corrector_order))
    keep, of_before, of_last_z = np.ones(steps), np.zeros(steps), np.zeros(steps)
    known = 0  # estimates before this one, back to the last infinite lambda
    for n in range(steps):
        if known:
            # The step n - 1 again, with the estimate at its end.
            k = min(corrector_order, known + 1)
            nodes = lam[n - np.arange(k)]
            keep[n], of_before[n], of_last_z[n] = 0.0, of_x_t[n - 1], of_z[n - 1]
            corrector[n, :k] = signal[n] * _weights(
                nodes, lam[n - 1], lam[n], squares[n - 1], published
            )
        h = lam[n + 1] - lam[n]
        if squares[n]:
            of_x_t[n] *= np.exp(-squares[n] * h)
            of_z[n] = noise[n + 1] * np.sqrt(-np.expm1(-2 * squares[n] * h))
        if not np.isfinite(h):
            predictor[n, 0], known = signal[n + 1], 0
            continue
        known += 1
        k = min(predictor_order, known)
        predictor[n, :k] = signal[n + 1] * _weights(
            lam[n - np.arange(k)], lam[n], lam[n + 1], squares[n], published
        )
    return {
        "keep": keep, "of_before": of_before, "of_last_z": of_last_z, "corrector": corrector,
        "of_x_t": of_x_t, "of_z": of_z, "predictor": predictor,
    }  # fmt: skip


def _weights(
    nodes: np.ndarray, low: float, high: float, square: float, published: bool
) -> np.ndarray:
    """int_low^high a exp(a (lambda - high)) l_j dlambda for the Lagrange polynomials of nodes."""
    a, h = 1 + square, high - low
    if published and len(nodes) == 2:
        whole, slope = -np.expm1(-a * h), a * h**2 / 2 / (nodes[0] - nodes[1])
        # The line through the estimates at `low` and at the other node.
        weights = np.array([slope, -slope])
        weights[0 if nodes[0] == low else 1] += whole
        return weights
    tau, weights = quadrature(np.array([low]), np.array([high]))
    kernel = a * np.exp(a * (tau - high)) * weights
    return np.asarray((lagrange(nodes[None], tau) * kernel[:, None]).sum(2)[0])
