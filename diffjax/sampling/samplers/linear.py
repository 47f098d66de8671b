r"""Linear multistep and singlestep solvers: a sampler is a table of coefficients.

Multistep solvers combine x_t with the last few estimates, singlestep ones with estimates of their
own stages and with x at the first of these, the anchor. Both are

    x_s = a x_t + a' anchor + b x_0 + sum_j w_j f_j + std noise                              (1)

where f_0 is the present estimate (of x_0, of eps or of the velocity eps - x_0), f_1 the one before
it, and so on. So one evaluation is one step of the grid, and a solver is a function from the grid
to float64 columns a, a', b, w, std.

Two exact solutions of the probability-flow ODE say what the columns are. With
lambda = log(signal / noise) and rho = noise / signal,

    x_s = noise_s / noise_t x_t + noise_s int exp(lambda) x_0 dlambda                        (2)
    x_s = signal_s / signal_t x_t + signal_s int eps drho                                    (3)

(Lu et al. 2022a, 2022b; Zhang & Chen 2022). A solver puts a polynomial through the f_j in place of
x_0 or eps, and the integrals of its Lagrange basis are the w_j.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.loop import NoiseFn, Samples, require_key, run
from diffjax.types import Array, Data, PRNGKeys

# Below this lambda there is next to no signal, and ratios of signals are in the hundreds.
NEARLY_PURE_NOISE = -6.0
# Exact to rounding for the polynomials and exponentials that are integrated here.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)

Columns = dict[str, np.ndarray]


def half_log_snr(grid: Grid) -> Float64[np.ndarray, " points"]:
    """lambda = log(signal / noise), (N+1,); -inf at pure noise and inf at clean data."""
    with np.errstate(divide="ignore"):
        return np.log(grid.signal_scale) - np.log(grid.noise_scale)


def noise_to_signal(grid: Grid) -> Float64[np.ndarray, " points"]:
    """rho = noise / signal, (N+1,); inf at pure noise."""
    with np.errstate(divide="ignore"):
        return grid.noise_scale / grid.signal_scale


def lagrange(
    nodes: Float64[np.ndarray, "n k"], x: Float64[np.ndarray, "n Q"]
) -> Float64[np.ndarray, "n k Q"]:
    """The k polynomials of each row of nodes, 1 at one of them and 0 at the others.

    Args:
      nodes: (n, k).
      x: (n, Q) where to evaluate.

    Returns:
      (n, k, Q).
    """
    k = nodes.shape[1]
    basis = np.ones((*nodes.shape, x.shape[1]))
    for j in range(k):
        for i in range(k):
            if i != j:
                basis[:, j] *= (x - nodes[:, [i]]) / (nodes[:, [j]] - nodes[:, [i]])
    return basis


def quadrature(
    low: Float64[np.ndarray, " n"], high: Float64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, "n Q"], Float64[np.ndarray, "n Q"]]:
    """Points and weights of Gauss-Legendre's rule on each [low, high]: (n,) -> (n, Q)."""
    half = (high - low)[:, None] / 2
    return low[:, None] + (_NODES + 1) * half, _WEIGHTS * half


def available_orders(nodes: np.ndarray, order: int) -> np.ndarray:
    """(N,): how many of the nodes n, n-1, ... are finite, without a gap; 1 to `order`.

    A step that ends at an infinite node is of order 1.
    """
    steps = np.arange(len(nodes) - 1)
    k = np.ones(len(steps), int)
    for back in range(1, order):
        k += (k == back) & (steps >= back) & np.isfinite(nodes[np.maximum(steps - back, 0)])
    return np.where(np.isfinite(nodes[1:]), k, 1)


def steps_by_order(orders: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(k, the steps of that order)."""
    return [(int(k), np.flatnonzero(orders == k)) for k in np.unique(orders)]


def last_nodes(nodes: np.ndarray, n: np.ndarray, k: int) -> np.ndarray:
    """(n, k): the nodes n, n-1, ..., n-k+1."""
    return nodes[n[:, None] - np.arange(k)]


def linear(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    estimate: str,
    columns: Mapping[str, np.ndarray],
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """Runs (1).

    Args:
      denoise, x_T, grid, cond, keep_trajectory: as in `ancestral`.
      estimate: what f is: "x_0", "eps" or "velocity".
      columns: "past", (N, k), the w; and any of "x_t", "anchor", "x_0" and "std", (N,), which count
        as 0 where they are missing. With "anchor" also "start", where x_t becomes the anchor.
      key: needed with "std".
    """
    order = columns["past"].shape[1]
    if "std" in columns:
        require_key(key, "this sampler")

    def step(
        carry: tuple[Data, tuple[Data, ...]], x_t: Data, c: dict[str, Array], draw_noise: NoiseFn
    ) -> tuple[tuple[Data, tuple[Data, ...]], Data]:
        anchor, past = carry
        x_0, eps, _ = denoise(x_t, c["t"], cond)
        f = {"x_0": x_0, "eps": eps, "velocity": eps - x_0}[estimate]
        recent = (f, *past)
        x_s = sum((c["past"][j] * recent[j] for j in range(order)), jnp.zeros_like(x_t))
        if "anchor" in columns:
            anchor = jnp.where(c["start"] > 0, x_t, anchor)
            x_s += c["anchor"] * anchor
        if "x_t" in columns:
            x_s += c["x_t"] * x_t
        if "x_0" in columns:
            x_s += c["x_0"] * x_0
        if "std" in columns:
            x_s += c["std"] * draw_noise(0)
        return (anchor, recent[: order - 1]), x_s

    zeros = jnp.zeros_like(x_T)
    return run(
        step, x_T, grid=grid, coefficients=dict(columns), carry=(zeros, (zeros,) * (order - 1)),
        key=key if "std" in columns else None, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def check_order(name: str, order: int, highest: int) -> None:
    """Raises ValueError where `order` is not in 1..highest."""
    if order not in range(1, highest + 1):
        raise ValueError(f"{name} has orders 1 to {highest}, not {order}")


def check_steps(name: str, grid: Grid, least: int) -> None:
    """Raises ValueError where the grid has fewer than `least` steps."""
    if grid.steps < least:
        raise ValueError(
            f"{name} needs a grid of at least {least} steps, not {grid.steps}: take more steps"
        )
