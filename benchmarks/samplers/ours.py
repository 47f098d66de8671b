"""diffjax's solvers of the mixture, and the grids that give a solver so many evaluations.

All take and return x / signal on a grid of noise levels (signal = 1); those whose numbers depend on
how the same levels are scaled say which geometry they run in.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from benchmarks.samplers.mixture import SCHEDULE, SIGMA_MAX, expectation, rms, solution, starts
from diffjax import grids, samplers, schedules
from diffjax.denoisers import Denoiser
from diffjax.sampling.samplers import loop
from diffjax.schedules import Scales

SEED = 0


class Solver(NamedTuple):
    """Someone's solver.

    Attributes:
      name: in the tables.
      run: (x_T, grid) -> x; stochastic ones draw `noises`.
      steps: evaluations -> steps of the grid; None where it takes no such number.
      stages: fractions of `grids.with_stages`, that it wants its steps to have.
      package: who computes it.
      solves_ode: whether its error against the ODE means anything.
    """

    name: str
    run: Callable[[Any, grids.Grid], Any]
    steps: Callable[[int], int | None] = lambda n: n
    stages: tuple[float, ...] = ()
    package: str = "diffjax"
    solves_ode: bool = True


def noises(x_T: Any, grid: grids.Grid) -> np.ndarray:
    """(N, B, 2): what our samplers draw first in each step, for peers to take instead."""
    drawn = loop.run(
        lambda carry, x_t, c, draw: (carry, draw(0)), jnp.asarray(x_T), grid=grid, coefficients={},
        key=jax.random.key(SEED), keep_trajectory=True,
    )  # fmt: skip
    assert drawn.trajectory is not None
    return np.asarray(drawn.trajectory[1:])


def _denoiser(schedule: schedules.ContinuousSchedule) -> Denoiser:
    def denoise(x_t: Any, t: Any, cond: Any = None) -> dj.Estimates:
        signal, noise = schedule(jnp.asarray(t, x_t.dtype))
        x_0 = expectation(jnp, x_t / signal, noise / signal)
        return dj.Estimates(x_0, (x_t - signal * x_0) / noise)

    return denoise


def _ours(
    name: str,
    sampler: Callable[..., Any],
    *,
    geometry: Callable[[Any], Scales] = schedules.variance_exploding,
    draws: bool = False,
    **more: Any,
) -> Solver:
    schedule = dataclasses.replace(SCHEDULE, geometry=geometry)
    options: dict[str, Any] = {"key": jax.random.key(SEED)} if draws else {}

    def run(x_T: Any, grid: grids.Grid) -> Any:
        with np.errstate(divide="ignore"):
            signal, noise = geometry(-2 * np.log(grid.noise_scale))
        scaled = grids.Grid(grid.t, signal, noise)

        @jax.jit
        def sample(x: Any) -> Any:
            return sampler(_denoiser(schedule), x, grid=scaled, **options).x_0

        return sample(jnp.asarray(x_T) * signal[0]) / signal[-1]

    return Solver(name, run, solves_ode=not draws, **more)


HALF, THIRDS = (0.5,), (1 / 3, 2 / 3)


def _twice(n: int) -> int:
    return (n + 1) // 2


def _solvers() -> tuple[Solver, ...]:
    return (
        _ours("ddim, euler", samplers.ddim),
        _ours("heun", samplers.heun, steps=_twice),
        _ours("heun, flow", samplers.heun, geometry=schedules.straight, steps=_twice),
        _ours("dpm2", samplers.dpm2, stages=HALF),
        _ours("dpm_solver_2", samplers.dpm_solver_2, stages=HALF),
        _ours("dpm_solver_3", samplers.dpm_solver_3, stages=THIRDS),
        _ours("dpm_solver_pp_2s", samplers.dpm_solver_pp_2s, stages=HALF),
        _ours("dpm_solver_pp_3s", samplers.dpm_solver_pp_3s, stages=THIRDS),
        _ours("midpoint", samplers.midpoint),
        _ours("dpm_solver_2m", samplers.dpm_solver_2m),
        _ours(
            "dpm_solver_3m, published", functools.partial(samplers.dpm_solver_3m, published=True)
        ),
        _ours("dpm_solver_3m", samplers.dpm_solver_3m),
        _ours("dpm_solver_pp_2m", samplers.dpm_solver_pp_2m),
        _ours(
            "dpm_solver_pp_3m, published",
            functools.partial(samplers.dpm_solver_pp_3m, published=True),
        ),
        _ours("dpm_solver_pp_3m", samplers.dpm_solver_pp_3m),
        _ours("unipc 1", functools.partial(samplers.unipc, order=1)),
        _ours("unipc 2, bh1", functools.partial(samplers.unipc, variant="bh1")),
        _ours("unipc 2, bh2", samplers.unipc),
        _ours("unipc 3", functools.partial(samplers.unipc, order=3)),
        _ours("sa_solver, tau 0", functools.partial(samplers.sa_solver, tau=0.0)),
        _ours("deis 2, t", functools.partial(samplers.deis, order=2, schedule=SCHEDULE)),
        _ours("deis 3, t", functools.partial(samplers.deis, order=3, schedule=SCHEDULE)),
        _ours("deis 3, log_rho", functools.partial(samplers.deis, order=3, variable="log_rho")),
        _ours("lms 4", samplers.lms),
        *(_ours(f"ipndm {k}", functools.partial(samplers.ipndm, order=k)) for k in (2, 3, 4)),
        _ours("plms", samplers.plms, steps=lambda n: n - 1),
        _ours(
            "pndm",
            functools.partial(samplers.pndm, schedule=SCHEDULE),
            steps=lambda n: n - 9 if n > 12 else None,
        ),
    )


def _stochastic_solvers() -> tuple[Solver, ...]:
    vp = schedules.variance_preserving
    sde = samplers.sde_dpm_solver_pp
    return (
        _ours("ancestral, beta_tilde", samplers.ancestral, geometry=vp, draws=True),
        _ours(
            "ancestral, beta", functools.partial(samplers.ancestral, variance="beta"),
            geometry=vp, draws=True,
        ),
        _ours("ddim, eta 1", functools.partial(samplers.ddim, eta=1.0), draws=True),
        _ours("euler_ancestral", samplers.euler_ancestral, draws=True),
        *(
            _ours(f"sde_dpm_solver_pp {k}", functools.partial(sde, order=k), draws=True)
            for k in (1, 2, 3)
        ),
        *(
            _ours(
                f"sa_solver {p}, {c}",
                functools.partial(samplers.sa_solver, predictor_order=p, corrector_order=c),
                draws=True,
            )
            for p, c in ((1, 1), (2, 2), (3, 4))
        ),
        *(
            _ours(sampler.__name__, functools.partial(sampler, schedule=SCHEDULE), draws=True)
            for sampler in (
                samplers.edm_stochastic, samplers.euler_churn, samplers.dpm2_churn,
                samplers.dpm2_ancestral, samplers.dpm_solver_pp_2s_ancestral,
            )
        ),
    )  # fmt: skip


def _inversion(x_0: Any, grid: grids.Grid) -> Any:
    @jax.jit
    def invert(x: Any) -> Any:
        return samplers.ddim_inversion(_denoiser(SCHEDULE), x, grid=grid).x_0

    return invert(jnp.asarray(x_0))


OURS = _solvers()
STOCHASTIC = _stochastic_solvers()
# From data to noise: its x_T is x_0.
INVERSION = Solver("ddim_inversion", _inversion, solves_ode=False)


def grid_for(solver: Solver, evaluations: int) -> grids.Grid | None:
    """Karras' grid (rho = 7) on which the solver makes so many evaluations."""
    steps = solver.steps(evaluations)
    if steps is None:
        return None
    k = len(solver.stages) + 1
    if k == 1:
        return grids.karras(SCHEDULE, steps)
    steps -= (steps - 1) % k  # the step to clean data is alone
    if steps <= 1:
        return None
    outer = grids.karras(SCHEDULE, 1 + (steps - 1) // k)
    return grids.with_stages(SCHEDULE, outer, fractions=solver.stages)


def observed_order(solver: Solver) -> float:
    """Slope of log error over log steps between two fine grids in the middle of the path."""
    high, low = 5.0, 0.3
    schedule = schedules.karras(sigma_min=low, sigma_max=high)
    x_T = starts() / SIGMA_MAX * high
    exact = solution(x_T, high, low)
    errors = []
    k = len(solver.stages) + 1
    for steps in (60, 120):
        grid = grids.exponential(schedule, steps // k + 1, sigma_min=low, sigma_max=high)
        grid = grids.stop_before_clean(grid)
        if k > 1:
            grid = grids.with_stages(schedule, grid, fractions=solver.stages)
        times = np.asarray(SCHEDULE.time(-2 * np.log(grid.noise_scale)))
        errors.append(rms(solver.run(x_T, grid._replace(t=times)), exact))
    return float(np.log2(errors[0] / errors[1]))
