"""Data whose denoiser, and for a Gaussian the probability-flow ODE, are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import grids, schedules
from diffjax import parametrisations as p

MEAN, STD = 0.3, 0.5
KEY = jax.random.key(0)
FLOW = schedules.rectified_flow()
SCHEDULES = {
    "cosine": schedules.continuous_cosine(),
    "linear log-SNR": schedules.linear_log_snr(log_snr_min=-6, log_snr_max=6),
    "edm": schedules.karras(),
    "flow": FLOW,
}


def gaussian_denoiser(schedule, mean=MEAN, std=STD):
    """E[x_0 | x_t] of N(mean, std^2) data: regression of one Gaussian on another."""

    def denoise(x_t, t, cond=None):
        signal, noise = dj.process.scales_like(schedule, t, x_t)
        centred = (x_t - signal * mean) / ((signal * std) ** 2 + noise**2)
        return dj.Estimates(mean + signal * std**2 * centred, noise * centred)

    return denoise


def ode_solution(x_T, scales_T, mean=MEAN, std=STD):
    """The exact x_0: the flow keeps a Gaussian's quantiles."""
    signal, noise = scales_T
    return mean + std * (x_T - signal * mean) / np.sqrt((signal * std) ** 2 + noise**2)


def middle(schedule, steps):
    """Times from 0.9 to 0.1, evenly: a path free of both ends, where order can be measured."""
    times = np.linspace(0.9, 0.1, steps + 1)
    scales = schedule(times)
    return grids.Grid(times, *scales)


def middle_solution(schedule, x_T):
    """The exact x at the end of `middle`, from x_T at its beginning."""
    exact = ode_solution(np.asarray(x_T), schedule(np.float64(0.9)))
    signal, noise = schedule(np.float64(0.1))
    return signal * MEAN + (exact - MEAN) / STD * np.hypot(signal * STD, noise)


def marginal_std(grid, i, std=STD):
    """Of x_t at the grid's point i: a Gaussian's variances add."""
    return np.hypot(grid.signal_scale[i] * std, grid.noise_scale[i])


def mixture_denoiser(schedule, centres=(-1.0, 1.0), std=0.1):
    """E[x_0 | x_t] of an even mixture: each Gaussian's answer, weighted by its responsibility."""

    def denoise(x_t, t, cond=None):
        signal, noise = dj.process.scales_like(schedule, t, x_t)
        variance = (signal * std) ** 2 + noise**2
        logits = jnp.stack([-((x_t - signal * c) ** 2) / (2 * variance) for c in centres])
        weights = jax.nn.softmax(logits, axis=0)
        each = jnp.stack([c + signal * std**2 * (x_t - signal * c) / variance for c in centres])
        x_0 = (weights * each).sum(0)
        return dj.Estimates(x_0, p.eps_from_x0(x_t, x_0, dj.Scales(signal, noise)))

    return denoise
