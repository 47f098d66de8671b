"""Which of our solvers is a peer's, and how far apart their numbers are."""

from typing import NamedTuple

import numpy as np

from benchmarks.samplers import diffusers_side, k_diffusion_side
from benchmarks.samplers.mixture import SCHEDULE, starts
from benchmarks.samplers.ours import INVERSION, OURS, STOCHASTIC, Solver
from diffjax import grids

SAME = 1e-9
STEPS, STARTS = 10, 8


class Pair(NamedTuple):
    """A peer's solver and ours.

    Attributes:
      package, theirs, ours: their names.
      why: what makes the difference, where it is above SAME.
      to_clean, to_noise: the most it may be on a grid that ends at clean data and on one that ends
        before; None where theirs is not a number.
    """

    package: str
    theirs: str
    ours: str
    why: str = ""
    to_clean: float | None = SAME
    to_noise: float | None = SAME


_ZERO = "theirs is NaN in a step to sigma = 0: 0 times infinity"
_QUIET = "theirs adds no noise in its last step, also where that ends above clean data"
PAIRS = (
    Pair("diffusers", "Euler", "ddim, euler"),
    Pair("diffusers", "EDM Euler", "ddim, euler"),
    Pair("diffusers", "DDIM", "ddim, euler"),
    Pair("diffusers", "Flow match Euler", "ddim, euler"),
    Pair("diffusers", "Heun", "heun"),
    Pair("diffusers", "Flow match Heun", "heun, flow"),
    Pair("diffusers", "KDPM2", "dpm2"),
    Pair("diffusers", "LMS", "lms 4"),
    Pair("diffusers", "IPNDM", "ipndm 4"),
    Pair("diffusers", "PLMS", "plms"),
    Pair("diffusers", "PNDM", "pndm"),
    Pair("diffusers", "DEIS 3", "deis 3, log_rho", _ZERO, to_clean=None),
    Pair("diffusers", "DPM-Solver++ 2M", "dpm_solver_pp_2m"),
    Pair("diffusers", "DPM-Solver++ 3M", "dpm_solver_pp_3m, published"),
    Pair("diffusers", "DPM-Solver++ 2S", "dpm_solver_pp_2s"),
    Pair("diffusers", "DPM-Solver 2S", "dpm_solver_2", _ZERO, to_clean=None),
    Pair(
        "diffusers", "DPM-Solver 3S", "dpm_solver_3",
        "theirs takes the second stage by the formula of order 2; ours is the paper's, and "
        "k-diffusion's dpm_solver_3_step below. And " + _ZERO,
        to_clean=None, to_noise=0.05,
    ),
    Pair(
        "diffusers", "DPM-Solver++ 3S", "dpm_solver_pp_3s",
        "the second stage, as in DPM-Solver 3S", to_clean=0.01, to_noise=0.01,
    ),
    Pair("diffusers", "DPM-Solver 2M", "dpm_solver_2m", _ZERO, to_clean=None),
    Pair("diffusers", "DPM-Solver 3M", "dpm_solver_3m, published", _ZERO, to_clean=None),
    Pair("diffusers", "UniPC 2, bh1", "unipc 2, bh1", _ZERO, to_clean=None),
    Pair("diffusers", "UniPC 2, bh2", "unipc 2, bh2"),
    Pair("diffusers", "UniPC 3, bh2", "unipc 3"),
    Pair("diffusers", "DDPM, fixed small", "ancestral, beta_tilde", _QUIET, to_noise=0.1),
    Pair("diffusers", "DDPM, fixed large", "ancestral, beta", _QUIET, to_noise=0.1),
    Pair("diffusers", "DDIM, eta 1", "ddim, eta 1"),
    Pair("diffusers", "Euler ancestral", "euler_ancestral"),
    Pair("diffusers", "SDE-DPM-Solver++ 1M", "sde_dpm_solver_pp 1"),
    Pair("diffusers", "SDE-DPM-Solver++ 2M", "sde_dpm_solver_pp 2"),
    Pair(
        "diffusers", "SDE-DPM-Solver++ 3M", "sde_dpm_solver_pp 3",
        "their second-difference term has the wrong sign at its 0.5: in a small step it goes to -1 "
        "where it should vanish. With + 0.5 in its place theirs is ours to 1e-14",
        to_clean=5.0, to_noise=5.0,
    ),
    Pair("diffusers", "SA-Solver 1, 1", "sa_solver 1, 1", _ZERO, to_clean=None),
    Pair("diffusers", "SA-Solver 2, 2", "sa_solver 2, 2", _ZERO, to_clean=None),
    Pair("diffusers", "SA-Solver 3, 4", "sa_solver 3, 4", _ZERO, to_clean=None),
    Pair("diffusers", "DDIM inverse", "ddim_inversion"),
    Pair("k-diffusion", "sample_euler", "ddim, euler"),
    Pair("k-diffusion", "sample_heun", "heun"),
    Pair("k-diffusion", "sample_dpm_2", "dpm2"),
    Pair("k-diffusion", "sample_lms", "lms 4"),
    Pair("k-diffusion", "sample_dpmpp_2s_ancestral, eta 0", "dpm_solver_pp_2s"),
    Pair("k-diffusion", "sample_dpmpp_2m", "dpm_solver_pp_2m"),
    Pair("k-diffusion", "sample_dpmpp_2m_sde, eta 0", "dpm_solver_pp_2m"),
    Pair(
        "k-diffusion", "sample_dpmpp_3m_sde, eta 0", "dpm_solver_pp_3m, published",
        "theirs integrates the line exactly in the second step; ours takes 2M's, as the authors' "
        "code and diffusers", to_clean=1e-4, to_noise=1e-4,
    ),
    Pair("k-diffusion", "dpm_solver_2_step", "dpm_solver_2"),
    Pair("k-diffusion", "dpm_solver_3_step", "dpm_solver_3"),
    Pair("k-diffusion", "sample_euler_ancestral", "euler_ancestral"),
    Pair("k-diffusion", "sample_heun, churn 40", "edm_stochastic"),
    Pair("k-diffusion", "sample_euler, churn 40", "euler_churn"),
    Pair("k-diffusion", "sample_dpm_2, churn 40", "dpm2_churn"),
    Pair("k-diffusion", "sample_dpm_2_ancestral", "dpm2_ancestral"),
    Pair("k-diffusion", "sample_dpmpp_2s_ancestral", "dpm_solver_pp_2s_ancestral"),
    Pair("k-diffusion", "sample_dpmpp_2m_sde", "sde_dpm_solver_pp 2"),
    Pair(
        "k-diffusion", "sample_dpmpp_3m_sde", "sde_dpm_solver_pp 3",
        "the second step, as with eta 0", to_clean=1e-4, to_noise=1e-4,
    ),
)  # fmt: skip


def peers() -> dict[tuple[str, str], Solver]:
    """Those that are installed, by package and name."""
    found = (*diffusers_side.solvers(), *k_diffusion_side.solvers())
    return {(solver.package, solver.name): solver for solver in found}


def difference(pair: Pair, theirs: Solver, *, clean: bool) -> float:
    """The largest between their x and ours: same starts, noise levels and noise, in float64."""
    ours = next(s for s in (*OURS, *STOCHASTIC, INVERSION) if s.name == pair.ours)
    outer = grids.karras(SCHEDULE, STEPS)

    def grid_of(solver: Solver) -> grids.Grid:
        grid = outer
        if solver.stages:
            grid = grids.with_stages(SCHEDULE, outer, fractions=solver.stages)
        return grid if clean else grids.stop_before_clean(grid)

    x_T = starts()[:STARTS]
    if ours is INVERSION:
        x_T = np.asarray(OURS[0].run(x_T, grid_of(OURS[0])))
    a, b = ours.run(x_T, grid_of(ours)), theirs.run(x_T, grid_of(theirs))
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())
