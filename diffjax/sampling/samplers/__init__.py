r"""Samplers: from x_T to x_0 by asking a denoiser on a grid of times.

All have one signature,

    sampler(denoise, x_T, *, grid, key=None, cond=None, keep_trajectory=False, ...) -> Samples

and one loop. A sampler computes its coefficients for every step from the grid, on the host in
float64, and states one step; `loop.run` runs it under `lax.scan`, so neither memory nor compile
time grows with the number of steps. With signal, noise at the present time t and at the next time
s, all deterministic ones solve the probability-flow ODE, which has the exact solution

    x_s = signal_s x_0 + noise_s eps                                                      (1)

where x_0 and eps, the denoiser's estimates, do not change along the step (DDIM). They differ in how
they correct for the change:

    one_step       ancestral, ddim, euler_ancestral, euler, heun
    dpm_multistep  dpm_solver_2m, dpm_solver_3m, dpm_solver_pp_2m, dpm_solver_pp_3m,
                   sde_dpm_solver_pp
    multistep      deis, lms, ipndm
    pndm           pndm, plms
    unipc          unipc
    sa_solver      sa_solver
    singlestep     dpm_solver_2, dpm_solver_3, dpm_solver_pp_2s, dpm_solver_pp_3s, dpm2
    runge_kutta    midpoint, heun3, rk4
    stochastic     edm_stochastic, euler_churn, predictor_corrector, restart
    two_stage      dpm2_churn, dpm2_ancestral, dpm_solver_pp_2s_ancestral
    adaptive       adaptive
    dpm_adaptive   dpm_solver_adaptive
    inversion      ddim_inversion, multistep_inversion
    few_step       consistency, flow_map

The last one takes a flow map in the denoiser's place (`flow_maps`).

The grid decides what the last step does: to clean data, as grids end unless
`grids.stop_before_clean` cuts them, all of them land on an estimate of x_0. A step to clean data
has no noise; a step to noise has what its law says, be it the last.
"""

from diffjax.sampling.samplers.adaptive import adaptive
from diffjax.sampling.samplers.dpm_adaptive import dpm_solver_adaptive
from diffjax.sampling.samplers.dpm_multistep import (
    dpm_solver_2m,
    dpm_solver_3m,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    sde_dpm_solver_pp,
)
from diffjax.sampling.samplers.few_step import consistency, flow_map
from diffjax.sampling.samplers.inversion import ddim_inversion, multistep_inversion
from diffjax.sampling.samplers.loop import Samples
from diffjax.sampling.samplers.multistep import deis, ipndm, lms
from diffjax.sampling.samplers.one_step import ancestral, ddim, euler, euler_ancestral, heun
from diffjax.sampling.samplers.pndm import plms, pndm
from diffjax.sampling.samplers.runge_kutta import heun3, midpoint, rk4
from diffjax.sampling.samplers.sa_solver import sa_solver
from diffjax.sampling.samplers.singlestep import (
    dpm2,
    dpm_solver_2,
    dpm_solver_3,
    dpm_solver_pp_2s,
    dpm_solver_pp_3s,
)
from diffjax.sampling.samplers.stochastic import (
    edm_stochastic,
    euler_churn,
    predictor_corrector,
    restart,
)
from diffjax.sampling.samplers.two_stage import (
    dpm2_ancestral,
    dpm2_churn,
    dpm_solver_pp_2s_ancestral,
)
from diffjax.sampling.samplers.unipc import unipc

__all__ = [
    "Samples",
    "adaptive",
    "ancestral",
    "consistency",
    "ddim",
    "ddim_inversion",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm2_churn",
    "dpm_solver_2",
    "dpm_solver_2m",
    "dpm_solver_3",
    "dpm_solver_3m",
    "dpm_solver_adaptive",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_2s",
    "dpm_solver_pp_2s_ancestral",
    "dpm_solver_pp_3m",
    "dpm_solver_pp_3s",
    "edm_stochastic",
    "euler",
    "euler_ancestral",
    "euler_churn",
    "flow_map",
    "heun",
    "heun3",
    "ipndm",
    "lms",
    "midpoint",
    "multistep_inversion",
    "plms",
    "pndm",
    "predictor_corrector",
    "restart",
    "rk4",
    "sa_solver",
    "sde_dpm_solver_pp",
    "unipc",
]
