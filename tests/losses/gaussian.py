"""Gaussian data, for which all that few-step models seek is known in closed form.

With x_0 ~ N(m, s^2) an ODE's path keeps its place among the marginals: (x_t - mean_t) / std_t does
not change along it. That gives the flow map, the average velocity and the consistency function;
expectations over (x_0, eps) are exact by Gauss-Hermite quadrature.
"""

import jax.numpy as jnp
import numpy as np

from diffjax import schedules
from diffjax.parametrisations import Estimates
from diffjax.process import broadcast, scales_like

MEAN, STD = 0.4, 0.6
FLOW = schedules.rectified_flow()
EDM = schedules.karras()
COSINE = schedules.continuous_cosine()


def marginal(schedule, t, x, *, mean=MEAN, std=STD):
    """Mean and standard deviation of x_t, which multiply (B, ...) arrays."""
    t = jnp.asarray(t)
    # The flow's pair as it is written: the slope of its log-SNR is infinite at both ends.
    pair = (1 - t, t) if schedule is FLOW else schedule(t)
    signal, noise = (broadcast(scale, x) for scale in pair)
    return signal * mean, jnp.hypot(signal * std, noise)


def exact_map(x_t, t, s, *, schedule=FLOW):
    (mean_t, std_t), (mean_s, std_s) = (marginal(schedule, time, x_t) for time in (t, s))
    return mean_s + std_s / std_t * (x_t - mean_t)


def exact_average_velocity(x_t, t, s, cond=None):
    """(x_t - x_s) / (t - s), and its limit: the slope of the path."""
    t, s = jnp.asarray(t), jnp.asarray(s)
    span = broadcast(t - s, x_t)
    apart = jnp.where(span == 0, 1.0, span)
    return jnp.where(span == 0, exact_velocity(x_t, t), (x_t - exact_map(x_t, t, s)) / apart)


def exact_velocity(x_t, t):
    """E[eps - x_0 | x_t] by the regression of jointly Gaussian variables."""
    t = broadcast(t, x_t)
    variance = ((1 - t) * STD) ** 2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x_t - (1 - t) * MEAN)


def denoiser(schedule, *, mean=MEAN, std=STD):
    """The posterior mean of x_0, and the eps that goes with it."""

    def denoise(x_t, t, cond=None):
        scales = scales_like(schedule, t, x_t)
        signal, noise = scales
        power = (signal * std) ** 2 + noise**2
        x_0 = mean + signal * std**2 * (x_t - signal * mean) / power
        return Estimates(x_0, noise * (x_t - signal * mean) / power)

    return denoise


def consistency_function(schedule):
    """The path's end as a denoiser."""

    def denoise(x_t, t, cond=None):
        mean, std = marginal(schedule, t, x_t)
        x_0 = MEAN + STD / std * (x_t - mean)
        signal, noise = scales_like(schedule, t, x_t)
        return Estimates(x_0, (x_t - signal * x_0) / noise)

    return denoise


def pairs(count=9):
    """(x_0, eps) (B, 1) and weights (B,): E f = sum w f, exact for polynomials of low degree."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    a, b = (grid.ravel() for grid in np.meshgrid(nodes, nodes))
    x_0, eps = (jnp.asarray(v)[:, None] for v in (MEAN + STD * a, b))
    return x_0, eps, jnp.asarray(np.outer(weights, weights).ravel())


def affine(exact):
    """exact plus p0 + p1 x, the directions in which a network may be wrong."""
    return lambda p: lambda x, *rest: exact(x, *rest) + p[0] + p[1] * x
