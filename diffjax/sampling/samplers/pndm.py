"""Pseudo numerical methods: a Runge-Kutta start, then a linear multistep formula.

Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds". Classical formulas
for dx/dt say which eps to take, and DDIM's step, exact while eps stays, replaces x + h dx/dt:

    phi(x_t, e, t, s) = signal_s / signal_t x_t + signal_s (rho_s - rho_t) e                  (1)

with rho = noise / signal. `ipndm` is the multistep part alone.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffjax.denoisers import Denoiser
from diffjax.grids import Grid
from diffjax.sampling.samplers.linear import NEARLY_PURE_NOISE, half_log_snr, noise_to_signal
from diffjax.sampling.samplers.loop import NoiseFn, Samples, run
from diffjax.sampling.samplers.multistep import ADAMS_BASHFORTH
from diffjax.schedules import Schedule
from diffjax.types import Array, Data, PRNGKeys


class _Start(NamedTuple):
    """How the first steps are taken: every stage goes from the step's begin by the eps before it.

    Attributes:
      steps: how many.
      places: of the stages, as shares of the step.
      weights: of their eps in the step itself.
    """

    steps: int
    places: tuple[float, ...]
    weights: tuple[float, ...]


_IMPROVED_EULER = _Start(1, (0.0, 1.0), (1 / 2, 1 / 2))
_RUNGE_KUTTA = _Start(3, (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def pndm(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
    schedule: Schedule,
) -> Samples:
    """PNDM: three steps of the pseudo Runge-Kutta method, then `ipndm` of order 4.

    Liu et al. 2022, algorithm 2 ("F-PNDM"). A Runge-Kutta step evaluates at t, twice at the
    midpoint in t and at s, each time reached from x_t by (1) with the eps before, and goes to s
    with e = (e_1 + 2 e_2 + 2 e_3 + e_4) / 6; e_1 is remembered. Nine evaluations more than steps.
    Of the first three, a step from nearly pure noise, where (1) can't take another's eps, or to
    clean data, where there is no eps, is `ipndm`'s.

    Args:
      denoise, x_T, grid, cond: as in `ancestral`.
      key: not used.
      keep_trajectory: whether to return every x_t, of all stages in their order.
      schedule: the grid's; it knows the midpoints, which are whole where they can be on a discrete
        schedule.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> grid = dj.grids.trailing(flow, 50)
    >>> x_0 = dj.samplers.pndm(denoise, noise, grid=grid, schedule=flow).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    return _pseudo(
        denoise, x_T, grid=grid, start=_RUNGE_KUTTA, schedule=schedule, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def plms(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    key: PRNGKeys | None = None,
    cond: Any = None,
    keep_trajectory: bool = False,
) -> Samples:
    """PLMS: `ipndm` of order 4 whose first step is taken twice, by the improved Euler method.

    Liu et al. 2022 (S-PNDM's start, F-PNDM's multistep part), as latent diffusion's code has it.
    One evaluation more than steps. From nearly pure noise, where DDIM's step can't be averaged, and
    to clean data the start is `ddim`'s.

    Args:
      denoise, x_T, grid, cond: as in `ancestral`.
      key: not used.
      keep_trajectory: whether to return every x_t, that of the first guess as well.

    >>> import jax.numpy as jnp, diffjax as dj
    >>> flow, noise = dj.schedules.rectified_flow(), jnp.array([[-1.0, 1.0]])
    >>> denoise = dj.denoisers.gaussian_denoiser(flow, mean=1.0, std=0.5)
    >>> x_0 = dj.samplers.plms(denoise, noise, grid=dj.grids.trailing(flow, 50)).x_0
    >>> print(x_0.round(2))  # the ODE's solution is mean + std noise
    [[0.5 1.5]]
    """
    del key
    return _pseudo(
        denoise, x_T, grid=grid, start=_IMPROVED_EULER, schedule=None, cond=cond,
        keep_trajectory=keep_trajectory,
    )  # fmt: skip


def _pseudo(
    denoise: Denoiser,
    x_T: Data,
    *,
    grid: Grid,
    start: _Start,
    schedule: Schedule | None,
    cond: Any,
    keep_trajectory: bool,
) -> Samples:
    lam = half_log_snr(grid)
    stages = [
        (n, j)
        for n in range(grid.steps)
        for j in range(
            len(start.places)
            if n < start.steps and lam[n] > NEARLY_PURE_NOISE and np.isfinite(lam[n + 1])
            else 1
        )
    ]
    walk = _walk(grid, np.array([n + start.places[j] for n, j in stages] + [grid.steps]), schedule)

    def step(
        carry: tuple[Data, Data, tuple[Data, ...]],
        x_t: Data,
        c: dict[str, Array],
        draw_noise: NoiseFn,
    ) -> tuple[tuple[Data, Data, tuple[Data, ...]], Data]:
        begin, mean, past = carry
        x_0, eps, _ = denoise(x_t, c["t"], cond)
        first = c["first"] > 0
        begin = jnp.where(first, x_t, begin)
        mean = jnp.where(first, 0, mean) + c["share"] * eps
        x_s = c["of_x_0"] * x_0 + c["of_begin"] * begin + c["of_eps"] * eps + c["of_mean"] * mean
        x_s += sum(c["of_past"][j] * past[j] for j in range(3))
        shifted = (eps, *past[:2])
        past = tuple(jnp.where(first, new, old) for new, old in zip(shifted, past, strict=True))
        return (begin, mean, past), x_s

    zeros = jnp.zeros_like(x_T)
    return run(
        step, x_T, grid=walk, coefficients=_columns(walk, stages, start.weights),
        carry=(zeros, zeros, (zeros,) * 3), key=None, keep_trajectory=keep_trajectory,
    )  # fmt: skip


def _walk(grid: Grid, places: np.ndarray, schedule: Schedule | None) -> Grid:
    """The grid's points at `places`, counted in steps; those between steps lie evenly in t."""
    t = np.interp(places, np.arange(grid.steps + 1), grid.t)
    if grid.t.dtype.kind == "i" and np.all(t == np.round(t)):
        t = t.astype(grid.t.dtype)
    signal, noise = (column[places.astype(int)] for column in grid.scales)
    between = places % 1 > 0
    if schedule is not None and between.any():
        signal[between], noise[between] = schedule(t[between])
    return Grid(t, signal, noise)


def _columns(
    walk: Grid, stages: list[tuple[int, int]], weights: tuple[float, ...]
) -> dict[str, np.ndarray]:
    """What a step of the walk weighs, given the step n and the stage j that it is."""
    rho, (signal, noise) = noise_to_signal(walk), walk.scales
    steps = walk.steps
    of_x_0, of_begin, of_eps, of_mean, share, first = np.zeros((6, steps))
    of_past = np.zeros((steps, 3))
    for i, (n, j) in enumerate(stages):
        is_last = i + 1 == steps or stages[i + 1][1] == 0
        share[i], first[i] = weights[j], j == 0
        if j:
            begin = i - j
            of_begin[i] = signal[i + 1] / signal[begin]
            (of_mean if is_last else of_eps)[i] = signal[i + 1] * (rho[i + 1] - rho[begin])
            continue
        # signal_s / signal_t x_t as signal_s (x_0 + rho_t eps): finite at pure noise, too.
        of_x_0[i], of_eps[i] = signal[i + 1], noise[i + 1]
        if n and is_last:
            new, *old = ADAMS_BASHFORTH[min(n, 3)]
            change = signal[i + 1] * (rho[i + 1] - rho[i])
            of_eps[i] += change * (new - 1)
            of_past[i, : len(old)] = change * np.array(old)
    return {
        "of_x_0": of_x_0, "of_begin": of_begin, "of_eps": of_eps, "of_mean": of_mean,
        "of_past": of_past, "share": share, "first": first,
    }  # fmt: skip
