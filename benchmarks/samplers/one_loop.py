"""What 1,000 steps cost to compile and to hold in memory, over what 10 do."""

import functools
import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import diffjax as dj
from diffjax import editing, grids, samplers, schedules
from diffjax import parametrisations as p
from diffjax.models import UNet
from diffjax.training.gc_pause import gc_disabled

FEW, MANY = 10, 1000
SHAPE = (16, 28, 28, 1)
ROUNDS = 8
_DISCRETE, _FLOW = schedules.linear_beta(1000), schedules.rectified_flow()
_CONTINUOUS = schedules.continuous_cosine()


class Case(NamedTuple):
    """A sampler with what it needs: (denoise, x, grid=, key=) -> Samples."""

    name: str
    sample: Callable[..., Any]
    schedule: Any = _DISCRETE


class Cost(NamedTuple):
    """Ratios of MANY steps to FEW, and FEW's own bytes and seconds of CPU time."""

    name: str
    memory: float
    instructions: float
    compiling: float
    few_bytes: int
    few_seconds: float


def _keyless(sampler: Callable[..., Any]) -> Callable[..., Any]:
    return lambda denoise, x, *, grid, key: sampler(denoise, x, grid=grid)


def cases() -> list[Case]:
    """Every sampler, with defaults or with the options that make it another program."""
    known, mask = jnp.zeros(SHAPE), jnp.ones(SHAPE[1:]).at[10:20].set(0.0)
    plain: dict[str, Callable[..., Any]] = {
        "ddim": samplers.ddim, "euler": samplers.euler, "heun": samplers.heun,
        "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m,
        "dpm_solver_pp_3m": samplers.dpm_solver_pp_3m,
        "deis": functools.partial(samplers.deis, schedule=_DISCRETE),
        "lms": samplers.lms, "ipndm": samplers.ipndm, "plms": samplers.plms,
        "unipc": samplers.unipc,
        "dpm_solver_2": samplers.dpm_solver_2, "dpm_solver_3": samplers.dpm_solver_3,
        "dpm_solver_pp_2s": samplers.dpm_solver_pp_2s, "dpm2": samplers.dpm2,
        "dpm_solver_pp_3s": samplers.dpm_solver_pp_3s, "midpoint": samplers.midpoint,
        "dpm_solver_2m": samplers.dpm_solver_2m, "dpm_solver_3m": samplers.dpm_solver_3m,
        "dpm_solver_adaptive": functools.partial(samplers.dpm_solver_adaptive, schedule=_DISCRETE),
        "adaptive": functools.partial(samplers.adaptive, schedule=_DISCRETE),
        "ddim_inversion": samplers.ddim_inversion,
        "multistep_inversion": samplers.multistep_inversion,
    }  # fmt: skip
    draws: dict[str, Callable[..., Any]] = {
        "ancestral": samplers.ancestral,
        "ddim, eta 1": functools.partial(samplers.ddim, eta=1.0),
        "euler_ancestral": samplers.euler_ancestral,
        "sde_dpm_solver_pp": samplers.sde_dpm_solver_pp,
        "sa_solver": samplers.sa_solver,
        **{
            sampler.__name__: functools.partial(sampler, schedule=_DISCRETE)
            for sampler in (
                samplers.edm_stochastic, samplers.euler_churn, samplers.dpm2_churn,
                samplers.dpm2_ancestral, samplers.dpm_solver_pp_2s_ancestral,
            )
        },
        "predictor_corrector": samplers.predictor_corrector, "restart": samplers.restart,
        "editing.repaint": functools.partial(
            # Short stretches, so that 10 steps hold a way back as well.
            editing.repaint, known=known, mask=mask, jump=2, resamples=3,
        ),
    }  # fmt: skip
    return [
        *(Case(name, _keyless(sampler)) for name, sampler in plain.items()),
        # On a discrete schedule 10 steps have whole midpoints and 1,000 have not: another program.
        Case("pndm", _keyless(functools.partial(samplers.pndm, schedule=_CONTINUOUS)), _CONTINUOUS),
        Case("rk4", _keyless(samplers.rk4), _FLOW),
        Case("heun3", _keyless(samplers.heun3), _FLOW),
        *(Case(name, sampler) for name, sampler in draws.items()),
    ]


def measure(case: Case) -> Cost:
    """Compiles the case afresh with FEW and with MANY steps, in turn."""
    network = UNet(
        base_channels=64, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=()
    )
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.ones(SHAPE), jnp.ones(SHAPE[:1]))

    def compiled(steps: int) -> Any:
        def sample(params: Any, x: Any, key: Any) -> Any:
            denoise = dj.denoiser(
                lambda x, t, cond: network.apply(params, x, t), case.schedule, parametrisation=p.v
            )
            grid = grids.trailing(case.schedule, steps)
            return case.sample(denoise, x, grid=grid, key=key).x_0

        x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
        return jax.jit(sample).lower(params, x, jax.random.key(0)).compile()

    seconds: dict[int, list[float]] = {FEW: [], MANY: []}
    held: dict[int, int] = {}
    instructions: dict[int, int] = {}
    for _ in range(ROUNDS):
        for steps in (FEW, MANY):
            gc.collect()
            with gc_disabled():  # whose rounds fall where they like
                begin = time.process_time()
                program = compiled(steps)
                seconds[steps].append(time.process_time() - begin)
            sizes = program.memory_analysis()
            held[steps] = (
                sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
            )
            instructions[steps] = program.as_text().count(" = ")
    # The least: what else runs on the machine only adds.
    few, many = (min(seconds[steps]) for steps in (FEW, MANY))
    return Cost(
        case.name, held[MANY] / held[FEW], instructions[MANY] / instructions[FEW], many / few,
        held[FEW], few,
    )  # fmt: skip


def measure_all(log: Callable[[str], None]) -> list[Cost]:
    """All cases, in float32. XLA's cache is off from here on."""
    jax.config.update("jax_enable_compilation_cache", False)
    costs = []
    with jax.enable_x64(False):
        for case in cases():
            costs.append(measure(case))
            log(str(costs[-1]))
    return costs
