"""Every sampler under a name, with the options that make it another one."""

import functools
import inspect

from diffjax import samplers

DETERMINISTIC = {
    "ddim": samplers.ddim,
    "euler": samplers.euler,
    "heun": samplers.heun,
    "dpm_solver_2m": samplers.dpm_solver_2m,
    "dpm_solver_3m": samplers.dpm_solver_3m,
    "dpm_solver_3m, published": functools.partial(samplers.dpm_solver_3m, published=True),
    "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m,
    "dpm_solver_pp_3m": samplers.dpm_solver_pp_3m,
    "dpm_solver_pp_3m, published": functools.partial(samplers.dpm_solver_pp_3m, published=True),
    "sde_dpm_solver_pp, eta 0": functools.partial(
        samplers.sde_dpm_solver_pp, eta=0.0, order=3, published=False
    ),
    "unipc 1": functools.partial(samplers.unipc, order=1),
    "unipc 2": samplers.unipc,
    "unipc 2, bh1": functools.partial(samplers.unipc, variant="bh1"),
    "unipc 3": functools.partial(samplers.unipc, order=3),
    "sa_solver, tau 0": functools.partial(samplers.sa_solver, tau=0.0),
    "sa_solver 1, tau 0": functools.partial(
        samplers.sa_solver, tau=0.0, predictor_order=1, corrector_order=2, published=False
    ),
    "sa_solver 3, tau 0": functools.partial(
        samplers.sa_solver, tau=0.0, predictor_order=3, corrector_order=4, published=False
    ),
    "deis, log_rho": functools.partial(samplers.deis, variable="log_rho"),
    "deis 2, rho": functools.partial(samplers.deis, variable="rho", order=2),
    "lms": samplers.lms,
    "ipndm": samplers.ipndm,
    "dpm_solver_2": samplers.dpm_solver_2,
    "dpm_solver_3": samplers.dpm_solver_3,
    "dpm_solver_pp_2s": samplers.dpm_solver_pp_2s,
    "dpm_solver_pp_3s": samplers.dpm_solver_pp_3s,
    "dpm2": samplers.dpm2,
    "midpoint": samplers.midpoint,
    "heun3": samplers.heun3,
}
STOCHASTIC = {
    "ancestral": samplers.ancestral,
    "ancestral, beta": functools.partial(samplers.ancestral, variance="beta"),
    "ddim, eta 1": functools.partial(samplers.ddim, eta=1.0),
    "ddim, eta .5": functools.partial(samplers.ddim, eta=0.5),
    "sde_dpm_solver_pp 1": functools.partial(samplers.sde_dpm_solver_pp, order=1),
    "sde_dpm_solver_pp 2": samplers.sde_dpm_solver_pp,
    "sde_dpm_solver_pp 3": functools.partial(samplers.sde_dpm_solver_pp, order=3),
    "sa_solver": samplers.sa_solver,
    "sa_solver 3": functools.partial(
        samplers.sa_solver, predictor_order=3, corrector_order=4, tau=0.5, published=False
    ),
}
ALL = DETERMINISTIC | STOCHASTIC
# With stages or draws of their own: no order is measured here, and a trajectory may be longer.
DETERMINISTIC_OTHERS = {
    "plms": samplers.plms,
    "pndm": samplers.pndm,
    "adaptive": samplers.adaptive,
    "dpm_solver_adaptive": samplers.dpm_solver_adaptive,
}
STOCHASTIC_OTHERS = {
    "edm_stochastic": samplers.edm_stochastic,
    "euler_churn": samplers.euler_churn,
    "dpm2_churn": samplers.dpm2_churn,
    "dpm2_ancestral": samplers.dpm2_ancestral,
    "dpm_solver_pp_2s_ancestral": samplers.dpm_solver_pp_2s_ancestral,
    "predictor_corrector": samplers.predictor_corrector,
    "restart": samplers.restart,
}
OTHERS = DETERMINISTIC_OTHERS | STOCHASTIC_OTHERS
# Solvers that start with a step of order 1 are of order 2 in the end, however high their order is
# afterwards; where that first error is small or the data's being Gaussian helps, more is seen.
ORDER = dict.fromkeys(DETERMINISTIC, 2) | {"ddim": 1, "euler": 1, "dpm_solver_pp_3m": 3,
         "unipc 2": 3, "unipc 2, bh1": 3, "unipc 3": 3, "dpm_solver_3": 3,
         "dpm_solver_pp_3s": 3, "heun3": 3, "dpm_solver_3m": 3,
         "sa_solver 3, tau 0": 3}  # fmt: skip
MORE_IS_SEEN = (
    "sa_solver 3, tau 0",
    "sde_dpm_solver_pp, eta 0",
    "dpm_solver_3m",
    "unipc 3",
    "deis, log_rho",
    "lms",
    "midpoint",
)
# The last halving tells their order better than the one before.
LATE_TO_SHOW = (
    "sa_solver, tau 0",
    "dpm_solver_3m",
    "dpm_solver_pp_3m",
    "dpm_solver_pp_3m, published",
    "dpm_solver_3",
    "ipndm",
)
# These keep their order in the step to clean data, and do not land on the last estimate.
HIGH_ORDER_END = (
    "deis 2, rho",
    "lms",
    "ipndm",
    "midpoint",
    "heun3",
)
AT_100_STEPS = {
    "dpm_solver_pp_3m": 0.0055, "sde_dpm_solver_pp, eta 0": 0.0055, "unipc 1": 0.008,
    "sa_solver 1, tau 0": 0.008, "dpm_solver_pp_2s": 0.0065, "dpm_solver_2": 0.0065,
    "dpm2": 0.0065,
}  # fmt: skip
LEAST_STEPS = {
    "dpm_solver_2": 2,
    "dpm_solver_3": 3,
    "dpm_solver_pp_2s": 2,
    "dpm2": 2,
    "midpoint": 2,
    "dpm_solver_pp_3s": 3,
    "heun3": 3,
}


def find(name, schedule):
    """The sampler of that name, with the schedule where it asks for one."""
    sampler = (ALL | OTHERS)[name]
    if "schedule" in inspect.signature(sampler).parameters:
        return functools.partial(sampler, schedule=schedule)
    return sampler
