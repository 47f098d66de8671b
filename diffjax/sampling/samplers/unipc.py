"""UniPC: a multistep predictor, and a corrector that costs no evaluation."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.linear import check_order, half_log_snr
from diffjax.sampling.samplers.loop import NoiseFn, Samples, run
from diffjax.types import Array, Data, PRNGKeys


def unipc(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    order: int = 2,
    variant: str = "bh2",
) -> Samples:
    """UniPC on x_0: when x_t has been evaluated, the step that led there is taken again with it.

    Zhao et al. 2023, "UniPC: a unified predictor-corrector framework", algorithms 1 and 2 with
    B_1(h) = h ("bh1") or B_2(h) = exp(h) - 1 ("bh2"); B drops out of orders above 2. The
    corrector's order is one above the predictor's. Steps where lambda is infinite, at pure noise
    and to clean data, are `ddim`'s and not corrected, and the end is not either.

    Args:
      denoise, x_T, grid, cond: as in `ancestral`.
      key: not used.
      keep_trajectory: whether to return every x_t, as predicted.
      order: of the predictor, 1 to 3.
      variant: "bh1" or "bh2".

    Raises:
      ValueError: another order or variant.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.unipc(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    check_order("unipc", order, 3)
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant must be 'bh1' or 'bh2', not {variant!r}")
    columns = _columns(grid, order, variant)

    def step(
        carry: tuple[Data, tuple[Data, ...]], x_t: Data, c: dict[str, Array], draw_noise: NoiseFn
    ) -> tuple[tuple[Data, tuple[Data, ...]], Data]:
        before, past = carry
        recent = (denoise(x_t, c["t"], cond).x_0, *past)
        x_t = c["keep"] * x_t + c["of_before"] * before
        x_t += sum(c["corrector"][j] * recent[j] for j in range(order + 1))
        x_s = c["of_x_t"] * x_t + sum(c["predictor"][j] * recent[j] for j in range(order))
        return (x_t, recent[:order]), x_s

    zeros = jnp.zeros_like(x_T)
    return run(
        step, x_T, grid=grid, coefficients=columns, carry=(zeros, (zeros,) * order),
        key=None, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def _columns(grid: Grid, order: int, variant: str) -> dict[str, np.ndarray]:
    """Both formulas of every step; `corrector` weighs x_0 at x_t first, then those before."""
    lam, steps = half_log_snr(grid), grid.steps
    signal, noise = grid.scales
    keep, of_before, of_x_t = np.ones(steps), np.zeros(steps), np.zeros(steps)
    predictor, corrector = np.zeros((steps, order)), np.zeros((steps, order + 1))
    taken = 0  # order of the step before
    for n in range(steps):
        if taken:
            keep[n], of_before[n] = 0.0, noise[n] / noise[n - 1]
            h = lam[n] - lam[n - 1]
            nodes = (lam[n - 1 - np.arange(1, taken)] - lam[n - 1]) / h
            corrector[n, 1] = -signal[n] * np.expm1(-h)
            of_differences = signal[n] * _weights(h, np.append(nodes, 1.0), variant)
            corrector[n, 0] = of_differences[-1]
            corrector[n, 2 : taken + 1] = of_differences[:-1]
            corrector[n, 1] -= of_differences.sum()
        h = lam[n + 1] - lam[n]
        of_x_t[n] = noise[n + 1] / noise[n]
        if not np.isfinite(h):
            predictor[n, 0], taken = signal[n + 1], 0
            continue
        taken = 1
        while taken < order and taken <= n and np.isfinite(lam[n - taken]):
            taken += 1
        nodes = (lam[n - np.arange(1, taken)] - lam[n]) / h
        of_differences = signal[n + 1] * _weights(h, nodes, variant)
        predictor[n, 0] = -signal[n + 1] * np.expm1(-h) - of_differences.sum()
        predictor[n, 1:taken] = of_differences
    return {
        "keep": keep, "of_before": of_before, "corrector": corrector,
        "of_x_t": of_x_t, "predictor": predictor,
    }  # fmt: skip


def _weights(h: float, nodes: np.ndarray, variant: str) -> np.ndarray:
    """a_m / r_m B(h), the weights of the differences x_0(at r_m) - x_0(at 0).

    Args:
      h: the step in lambda.
      nodes: (p,) the r_m, places of other estimates in units of h; 1 is the step's end.
      variant: B, which matters for p = 1 alone, where a is the published 1/2.
    """
    p = len(nodes)
    if not p:
        return np.zeros(0)
    B = -h if variant == "bh1" else np.expm1(-h)
    if p == 1:
        return -B * np.array([0.5]) / nodes
    # Rows: sum_m a_m r_m^(q-1) = b_q, with b_q = q! phi_(q+1)(-h) (-h) / B; equation 8.
    rows, right = [], []
    phi, factorial = np.expm1(-h) / -h - 1, 1.0
    for q in range(1, p + 1):
        rows.append(nodes ** (q - 1))
        right.append(phi * factorial / B)
        factorial *= q + 1
        phi = phi / -h - 1 / factorial
    return -B * np.linalg.solve(np.array(rows), np.array(right)) / nodes
