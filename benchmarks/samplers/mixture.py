"""The problem: a Gaussian mixture in two dimensions, its denoiser and the truth."""

from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from diffjax import schedules

CENTRES = np.array([[-1.0, -0.5], [0.2, 1.1], [0.9, -0.8], [1.2, 0.4]])
STDS = np.array([0.1, 0.25, 0.15, 0.05])
WEIGHTS = np.array([0.3, 0.3, 0.25, 0.15])
POINTS = 256
SIGMA_MAX, SIGMA_MIN = 80.0, 0.002
SCHEDULE = schedules.karras(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)


def expectation(xp: Any, x: Any, sigma: Any) -> Any:
    """E[x_0 | x_0 + sigma eps = x]; x (B, 2), in numpy, jax.numpy or torch."""
    variance = xp.asarray(STDS**2) + sigma**2  # (K,)
    difference = x[:, None, :] - xp.asarray(CENTRES)  # (B, K, 2)
    logits = xp.asarray(np.log(WEIGHTS)) - xp.log(variance) - (difference**2).sum(-1) / 2 / variance
    share = xp.exp(logits - xp.amax(logits, 1)[:, None])
    share = share / share.sum(1)[:, None]
    each = xp.asarray(CENTRES) + (xp.asarray(STDS**2) / variance)[:, None] * difference
    return (share[..., None] * each).sum(1)


def starts() -> np.ndarray:
    """Draws of the noised mixture at the highest level."""
    rng = np.random.default_rng(0)
    which = rng.choice(len(WEIGHTS), POINTS, p=WEIGHTS)
    width = np.sqrt(STDS[which] ** 2 + SIGMA_MAX**2)
    return np.asarray(CENTRES[which] + width[:, None] * rng.normal(size=(POINTS, 2)))


def solution(x: np.ndarray, high: float, low: float) -> np.ndarray:
    """The probability-flow ODE from noise level high to low, by DOP853 in log sigma."""

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        x = flat.reshape(-1, 2)
        return np.asarray((x - expectation(np, x, np.exp(log_sigma))).ravel())

    solved = solve_ivp(
        slope, (np.log(high), np.log(low)), x.ravel(), "DOP853", rtol=1e-12, atol=1e-12
    )
    return np.asarray(solved.y[:, -1].reshape(-1, 2))


def rms(x: Any, exact: np.ndarray) -> float:
    """Root mean square of x - exact."""
    return float(np.sqrt(np.square(np.asarray(x) - exact).mean()))
