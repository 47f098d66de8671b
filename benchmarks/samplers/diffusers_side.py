"""diffusers' schedulers on our noise levels.

Each is given the levels in the form it keeps them in: a vector `sigmas`, a table `alphas_cumprod`
of which the levels are rows, or scales of its own. All solve in x / signal, the same as ours, up to
the scaling they want of x.
"""

import importlib
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.samplers.in_double import in_double
from benchmarks.samplers.mixture import SCHEDULE, expectation
from benchmarks.samplers.ours import Solver, noises
from diffjax import grids, schedules
from diffjax.schedules import Scales

# (scheduler, grid) -> the noise level at which every call asks the network.
Prepare = Callable[[Any, grids.Grid], np.ndarray]
# What they call a network's output.
_WORDS = {"x_0": "sample", "eps": "epsilon"}


def solvers() -> list[Solver]:
    """All of them, in float64; none where diffusers is not installed."""
    try:
        importlib.import_module("diffusers")
        importlib.import_module("torch")
    except ImportError:
        return []
    multistep, single = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
    unipc = "UniPCMultistepScheduler"
    exploding, flow = schedules.variance_exploding, schedules.straight
    torch: Any = importlib.import_module("torch")
    return [
        _by_sigmas("Euler", "EulerDiscreteScheduler", geometry=exploding),
        _by_sigmas("EDM Euler", "EDMEulerScheduler", geometry=exploding, give="both"),
        _by_sigmas("LMS", "LMSDiscreteScheduler", geometry=exploding),
        _by_sigmas("Heun", "HeunDiscreteScheduler", geometry=exploding, prepare=_doubled,
                   steps=_twice),
        _by_sigmas("KDPM2", "KDPM2DiscreteScheduler", geometry=exploding, prepare=_interpolated,
                   steps=_twice, give="eps"),
        _by_sigmas("DPM-Solver++ 2M", multistep, solver_order=2),
        _by_sigmas("DPM-Solver++ 3M", multistep, solver_order=3),
        _by_sigmas("DPM-Solver 2S", single, prepare=_in_groups, stages=(0.5,), solver_order=2,
                   algorithm_type="dpmsolver"),
        _by_sigmas("DPM-Solver 3S", single, prepare=_in_groups, stages=(1 / 3, 2 / 3),
                   solver_order=3, algorithm_type="dpmsolver"),
        _by_sigmas("DPM-Solver++ 2S", single, prepare=_in_groups, stages=(0.5,), solver_order=2),
        _by_sigmas("DPM-Solver++ 3S", single, prepare=_in_groups, stages=(1 / 3, 2 / 3),
                   solver_order=3),
        _by_sigmas("DPM-Solver 2M", multistep, solver_order=2, algorithm_type="dpmsolver"),
        _by_sigmas("DPM-Solver 3M", multistep, solver_order=3, algorithm_type="dpmsolver"),
        _by_sigmas("UniPC 2, bh1", unipc, solver_order=2, solver_type="bh1"),
        _by_sigmas("UniPC 2, bh2", unipc, solver_order=2),
        _by_sigmas("UniPC 3, bh2", unipc, solver_order=3),
        _by_sigmas("DEIS 3", "DEISMultistepScheduler", solver_order=3),
        _by_table("DDIM", "DDIMScheduler", set_alpha_to_one=True, clip_sample=False),
        _by_table("PLMS", "PNDMScheduler", give="eps", steps=lambda n: n - 1,
                  skip_prk_steps=True, set_alpha_to_one=True),
        _by_table("PNDM", "PNDMScheduler", prepare=_pndm, give="eps",
                  steps=lambda n: n - 9 if n > 12 else None, set_alpha_to_one=True),
        _by_scales("IPNDM", "IPNDMScheduler"),
        _by_sigmas("Flow match Euler", "FlowMatchEulerDiscreteScheduler", geometry=flow,
                   give="velocity"),
        _by_sigmas("Flow match Heun", "FlowMatchHeunDiscreteScheduler", geometry=flow,
                   give="velocity", prepare=_doubled, steps=_twice),
        _by_table("DDPM, fixed small", "DDPMScheduler", draws=True, clip_sample=False),
        _by_table("DDPM, fixed large", "DDPMScheduler", draws=True, clip_sample=False,
                  variance_type="fixed_large"),
        _by_table("DDIM, eta 1", "DDIMScheduler", draws=True, step={"eta": 1.0},
                  set_alpha_to_one=True, clip_sample=False),
        _by_sigmas("Euler ancestral", "EulerAncestralDiscreteScheduler", geometry=exploding,
                   draws=True, give="eps"),
        *(_by_sigmas(f"SDE-DPM-Solver++ {k}M", multistep, draws=True, solver_order=k,
                     algorithm_type="sde-dpmsolver++")
          for k in (1, 2, 3)),
        *(_by_sigmas(f"SA-Solver {p}, {c}", "SASolverScheduler", draws=True, predictor_order=p,
                     corrector_order=c, lower_order_final=False,
                     tau_func=lambda t: torch.tensor(1.0))
          for p, c in ((1, 1), (2, 2), (3, 4))),
        Solver("DDIM inverse", _inversion, package="diffusers", solves_ode=False),
    ]  # fmt: skip


def _twice(n: int) -> int:
    return (n + 1) // 2


def _make(kind: str, options: dict[str, Any]) -> Any:
    diffusers: Any = importlib.import_module("diffusers")
    # Of a number of steps that is replaced right after.
    diffusers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, kind)(**options)


def _estimates(x: Any, signal: float, noise: float) -> tuple[Any, Any]:
    """x_0 and eps of x = signal x_0 + noise eps."""
    torch: Any = importlib.import_module("torch")
    x_0 = expectation(torch, x / signal, torch.tensor(noise / signal))
    return x_0, (x - signal * x_0) / noise


def _scales(geometry: Callable[[Any], Scales], sigma: Any) -> Scales:
    with np.errstate(divide="ignore"):
        return geometry(-2 * np.log(sigma))


def _preserving(sigma: Any) -> Scales:
    return _scales(schedules.variance_preserving, sigma)


def _by_sigmas(
    name: str,
    kind: str,
    *,
    prepare: Prepare | None = None,
    geometry: Callable[[Any], Scales] = schedules.variance_preserving,
    give: str = "x_0",
    draws: bool = False,
    steps: Callable[[int], int | None] = lambda n: n,
    stages: tuple[float, ...] = (),
    **options: Any,
) -> Solver:
    """A scheduler that reads `sigmas`: noise / signal, or the noise of a flow."""
    is_flow = geometry is schedules.straight

    def run(x_T: Any, grid: grids.Grid) -> Any:
        torch: Any = importlib.import_module("torch")
        chosen = dict(options)
        if "solver_order" in options:
            # Their orders fall towards the end unless told not to; ours know by themselves.
            chosen["lower_order_final"] = False
            if kind != "DEISMultistepScheduler":
                to_noise = grid.noise_scale[-1] > 0 or options.get("algorithm_type") == "dpmsolver"
                chosen["final_sigmas_type"] = "sigma_min" if to_noise else "zero"
        if give in _WORDS:
            chosen["prediction_type"] = _WORDS[give]
        scheduler = _make(kind, chosen)
        levels = _scales(geometry, grid.noise_scale).noise_scale if is_flow else grid.noise_scale
        with in_double(_module(scheduler), noises(x_T, grid) if draws else None):
            scheduler.set_timesteps(grid.steps)
            asked = (prepare or _plain)(scheduler, grid._replace(noise_scale=levels))
            scheduler.timesteps = torch.arange(len(asked), 0, -1.0)
            scheduler.num_inference_steps = len(asked)
            scheduler.set_begin_index(0)
            scheduler.is_scale_input_called = True
            signal, noise = _scales(geometry, asked / (1 - asked) if is_flow else asked)
            x = torch.tensor(x_T * signal[0])
            for i, t in enumerate(scheduler.timesteps):
                if "UniPC" in kind and i + 1 == len(asked) and grid.noise_scale[-1] == 0:
                    scheduler.register_to_config(lower_order_final=True)
                x_0, eps = _estimates(x, signal[i], noise[i])
                output = {"x_0": x_0, "eps": eps, "both": eps, "velocity": eps - x_0}[give]
                more = {"pred_original_sample": x_0} if give == "both" else {}
                x = scheduler.step(output, t, x, **more).prev_sample
        return (x / _scales(geometry, grid.noise_scale[-1]).signal_scale).numpy()

    return Solver(name, run, package="diffusers", steps=steps, stages=stages, solves_ode=not draws)


def _module(scheduler: Any) -> types.ModuleType:
    return sys.modules[type(scheduler).__module__]


def _plain(scheduler: Any, grid: grids.Grid) -> np.ndarray:
    torch: Any = importlib.import_module("torch")
    scheduler.sigmas = torch.tensor(grid.noise_scale)
    return grid.noise_scale[:-1]


def _doubled(scheduler: Any, grid: grids.Grid) -> np.ndarray:
    """Heun's two evaluations a step, the second at its end."""
    torch: Any = importlib.import_module("torch")
    levels = grid.noise_scale
    inner = np.repeat(levels[1:], 2)
    if levels[-1] == 0:
        inner = inner[:-1]
    scheduler.sigmas = torch.tensor(np.append(levels[:1], inner))
    return np.append(levels[:1], inner[:-1])


def _interpolated(scheduler: Any, grid: grids.Grid) -> np.ndarray:
    """KDPM2's two evaluations a step, the second half-way in log sigma; as its set_timesteps."""
    torch: Any = importlib.import_module("torch")
    sigmas = torch.tensor(grid.noise_scale)
    middles = sigmas.log().lerp(sigmas.roll(1).log(), 0.5).exp()
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2), sigmas[-1:]])
    scheduler.sigmas_interpol = torch.cat(
        [middles[:1], middles[1:].repeat_interleave(2), middles[-1:]]
    )
    calls = 2 * grid.steps - (grid.noise_scale[-1] == 0)
    asked = np.empty(calls)
    asked[0::2] = scheduler.sigmas[0:calls:2]
    asked[1::2] = scheduler.sigmas_interpol[1:calls:2]
    return asked


def _in_groups(scheduler: Any, grid: grids.Grid) -> np.ndarray:
    """Singlestep: orders 1, 2, 1, 2, ... with the step to clean data alone."""
    order = scheduler.config.solver_order
    asked = _plain(scheduler, grid)
    scheduler.order_list = [1 + i % order for i in range(len(asked))]
    return asked


def _by_table(
    name: str,
    kind: str,
    *,
    prepare: Prepare | None = None,
    give: str = "x_0",
    draws: bool = False,
    step: dict[str, Any] | None = None,
    steps: Callable[[int], int | None] = lambda n: n,
    **options: Any,
) -> Solver:
    """A scheduler that reads `alphas_cumprod`: a table made of the grid's own levels."""

    def run(x_T: Any, grid: grids.Grid) -> Any:
        torch: Any = importlib.import_module("torch")
        chosen = {"prediction_type": _WORDS[give], **options}
        scheduler = _make(kind, chosen)
        with in_double(_module(scheduler), noises(x_T, grid) if draws else None):
            signal, noise = _preserving((prepare or _rows)(scheduler, grid))
            x = torch.tensor(x_T * signal[0])
            for i, t in enumerate(scheduler.timesteps):
                x_0, eps = _estimates(x, signal[i], noise[i])
                output = {"x_0": x_0, "eps": eps}[give]
                x = scheduler.step(output, int(t), x, **(step or {})).prev_sample
        return (x / _preserving(grid.noise_scale[-1]).signal_scale).numpy()

    return Solver(name, run, package="diffusers", steps=steps, solves_ode=not draws)


def _table(scheduler: Any, levels: np.ndarray, steps: int, end: float) -> np.ndarray:
    """Gives the scheduler a table of rising levels; returns them by its time steps."""
    torch: Any = importlib.import_module("torch")
    scheduler.alphas_cumprod = torch.tensor(1 / (1 + levels**2))
    scheduler.final_alpha_cumprod = scheduler.one = torch.tensor(1 / (1 + end**2))
    scheduler.register_to_config(num_train_timesteps=len(levels))
    scheduler.set_timesteps(steps)
    return levels


def _rows(scheduler: Any, grid: grids.Grid) -> np.ndarray:
    levels = _table(scheduler, grid.noise_scale[-2::-1], grid.steps, grid.noise_scale[-1])
    return np.asarray(levels[scheduler.timesteps.numpy()])


def _pndm(scheduler: Any, grid: grids.Grid) -> np.ndarray:
    """A table with the midpoints in t as every second row, for the Runge-Kutta steps."""
    between = SCHEDULE((grid.t[:-2] + grid.t[1:-1]) / 2).noise_scale
    levels = np.zeros(2 * grid.steps)
    levels[::2] = grid.noise_scale[-2::-1]
    levels[1:-1:2] = between[::-1]
    _table(scheduler, levels, grid.steps, grid.noise_scale[-1])
    return np.asarray(levels[scheduler.timesteps.numpy()])


def _by_scales(name: str, kind: str) -> Solver:
    """IPNDM, which has scales of its own and a network that returns v."""

    def run(x_T: Any, grid: grids.Grid) -> Any:
        torch: Any = importlib.import_module("torch")
        scheduler = _make(kind, {})
        with in_double(_module(scheduler), None):
            scheduler.set_timesteps(grid.steps)
            signal, noise = _preserving(grid.noise_scale)
            scheduler.alphas, scheduler.betas = torch.tensor(signal), torch.tensor(noise)
            scheduler.set_begin_index(0)
            x = torch.tensor(x_T * signal[0])
            for i, t in enumerate(scheduler.timesteps):
                x_0, eps = _estimates(x, signal[i], noise[i])
                x = scheduler.step(signal[i] * eps - noise[i] * x_0, t, x).prev_sample
        return (x / signal[-1]).numpy()

    return Solver(name, run, package="diffusers")


def _inversion(x: Any, grid: grids.Grid) -> Any:
    """DDIM's scheduler upwards, asked at the present level and, at clean data, at the next."""
    torch: Any = importlib.import_module("torch")
    scheduler = _make("DDIMInverseScheduler", {"clip_sample": False})
    with in_double(_module(scheduler), None):
        now = grid.noise_scale[-1]
        levels = _table(scheduler, grid.noise_scale[-2::-1], grid.steps, now)
        scheduler.initial_alpha_cumprod = scheduler.final_alpha_cumprod
        x = torch.tensor(x) / np.hypot(1, now)
        for t in scheduler.timesteps.tolist():
            asked, signal = now or levels[t], 1 / np.hypot(1, now)
            x_0 = expectation(torch, x / signal, torch.tensor(asked))
            x = scheduler.step((x / signal - x_0) / asked, t, x).prev_sample
            now = levels[t]
    return (x * np.hypot(1, now)).numpy()
