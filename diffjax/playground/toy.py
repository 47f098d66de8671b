"""The panel "toy": points of the plane as data, whose score is known in closed form.

With data p(x_0) = mean over i of N(x_0; p_i, s^2 I) every marginal is a mixture, too,

    p(x_t) = mean over i of N(x_t; signal p_i, v I),    v = signal^2 s^2 + noise^2          (1)
    E[x_0 | x_t] = sum over i of w_i (p_i + signal s^2 / v (x_t - signal p_i)),             (2)

with w = softmax(-|x_t - signal p_i|^2 / 2v). That is a denoiser, and diffjax's own samplers, grids
and schedules do the rest.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import grids, rng, schedules
from diffjax.denoisers import Denoiser
from diffjax.errors import UserError
from diffjax.experiment.own_settings import sampler_of
from diffjax.parametrisations import Estimates, eps_from_x0
from diffjax.playground.runs import Runs
from diffjax.playground.values import Values, checked_spec
from diffjax.playground.worker import Report
from diffjax.process import scales_like
from diffjax.schedules import Schedule
from diffjax.types import Array

NAMES = ("run", "points", "schedule", "sampler", "steps", "spread", "seed", "particles")
SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "cosine": schedules.cosine,
    "linear_beta": schedules.linear_beta,
    "rectified_flow": schedules.rectified_flow,
}
MOST_POINTS = 200
LIMIT = 2.0  # of the plane that is shown: [-LIMIT, LIMIT] in both directions
FIELD = 17  # arrows along a side
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def mixture_denoiser(points: Array, schedule: Schedule, *, spread: float) -> Denoiser:
    """Equation 2 as a denoiser.

    Args:
      points: (n, 2).
      schedule: the noise schedule.
      spread: s, above 0.
    """

    def denoise(x_t: Array, t: Any, cond: Any = None) -> Estimates:
        scales = scales_like(schedule, t, x_t)
        signal, noise = scales
        variance = signal**2 * spread**2 + noise**2
        from_each = x_t[:, None] - jnp.reshape(signal, (-1, 1, 1)) * points
        squared = jnp.square(from_each).sum(-1)
        weights = jax.nn.softmax(-squared / (2 * jnp.reshape(variance, (-1, 1))), axis=-1)
        shrink = jnp.reshape(signal * spread**2 / variance, (-1, 1, 1))
        x_0 = (weights[..., None] * (points + shrink * from_each)).sum(1)
        return Estimates(x_0, eps_from_x0(x_t, x_0, scales))

    return denoise


def points_of(text: str) -> np.ndarray:
    """Points (n, 2) in the plane from the letters of an address, two for each coordinate.

    Raises:
      UserError: no points, too many, or other letters.
    """
    if len(text) % 4 or not set(text) <= set(LETTERS):
        raise UserError("points is no list of points: draw some, or choose a shape")
    numbers = [LETTERS.index(letter) for letter in text]
    values = np.array(numbers, np.float32).reshape(-1, 2, 2) @ np.array([64, 1], np.float32)
    if not 1 <= len(values) <= MOST_POINTS:
        raise UserError(f"{len(values)} points: expected 1 to {MOST_POINTS}, draw some")
    return (values / 4095 * 2 - 1) * LIMIT


def run(values: Values, runs: Runs, report: Report) -> None:
    """Moves particles from noise to the points; reports them and the score's field at each time."""
    values.known(NAMES)
    points = jnp.asarray(points_of(values.text("points")))
    schedule = SCHEDULES[values.one_of("schedule", SCHEDULES, "cosine")]()
    steps = values.whole("steps", 40, least=1, most=200)
    spread = values.number("spread", 0.06, least=0.01, most=1.0)
    count = values.whole("particles", 400, least=1, most=1000)
    sampler = sampler_of(checked_spec("sampler", values.text("sampler", "ddim")), schedule)
    grid = grids.trailing(schedule, steps)
    compiled = jax.jit(mixture_denoiser(points, schedule, spread=spread))

    def denoise(x_t: Array, t: Any, cond: Any = None) -> Estimates:
        report({})
        with jax.disable_jit(False):
            return compiled(x_t, jnp.full(len(x_t), t), cond)

    key = rng.stream(values.seed(), "toy")
    start, noise = jax.random.split(key)
    x_T = jax.random.normal(start, (count, 2)) * float(grid.noise_scale[0])
    with jax.disable_jit():
        path = sampler(denoise, x_T, grid=grid, key=noise, keep_trajectory=True).trajectory
        if path is None:
            raise UserError("this sampler keeps no path: choose another")
        side = np.linspace(-LIMIT, LIMIT, FIELD, dtype=np.float32)
        places = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
        report({"points": _rounded(points), "places": _rounded(places), "frames": steps + 1})
        for number, t in enumerate(grid.t):
            # noise x score = -eps, of which the page draws the direction and the size.
            last = grid.t[-2] if number == steps else t
            field = -np.asarray(denoise(jnp.asarray(places), jnp.asarray(last)).eps)
            report(
                {"frame": {"t": float(t), "x": _rounded(path[number]), "field": _rounded(field)}}
            )
    report({"toy": True})


def _rounded(values: Any) -> list[float]:
    return [round(float(v), 3) for v in np.nan_to_num(np.asarray(values)).reshape(-1)]
