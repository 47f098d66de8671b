"""k-diffusion's samplers on our noise levels.

From its sampling.py alone: the rest of the package wants much more installed.
"""

import functools
import importlib
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.samplers.in_double import in_double
from benchmarks.samplers.mixture import expectation
from benchmarks.samplers.ours import Solver, noises
from diffjax import grids


def solvers() -> list[Solver]:
    """All of them, in float64; none where k-diffusion is not installed."""
    try:
        place = metadata.distribution("k-diffusion").locate_file("k_diffusion/sampling.py")
        importlib.import_module("torch")
    except (metadata.PackageNotFoundError, ImportError):
        return []
    sampling = _load(Path(str(place)))
    still = {"eta": 0.0}
    sample = functools.partial(_solver, sampling)
    return [
        sample("sample_euler"),
        sample("sample_heun", steps=_twice),
        sample("sample_dpm_2", steps=_twice),
        sample("sample_lms"),
        sample("sample_dpmpp_2s_ancestral", ", eta 0", steps=_twice, options=still),
        sample("sample_dpmpp_2m"),
        sample("sample_dpmpp_2m_sde", ", eta 0", options=still),
        sample("sample_dpmpp_3m_sde", ", eta 0", options=still),
        Solver("dpm_solver_2_step", functools.partial(_along, sampling, 2), steps=_twice,
               package="k-diffusion"),
        Solver("dpm_solver_3_step", functools.partial(_along, sampling, 3),
               steps=lambda n: 1 + (n - 1) // 3, package="k-diffusion"),
        sample("sample_euler_ancestral", draws=True),
        sample("sample_dpm_2_ancestral", draws=True),
        sample("sample_dpmpp_2s_ancestral", draws=True),
        *(sample(name, ", churn 40", draws=True, options={
            "s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003,
        }) for name in ("sample_euler", "sample_heun", "sample_dpm_2")),
        sample("sample_dpmpp_2m_sde", draws=True),
        sample("sample_dpmpp_3m_sde", draws=True),
    ]  # fmt: skip


def _twice(n: int) -> int:
    return (n + 1) // 2


def _load(path: Path) -> Any:
    for missing in ("torchsde", "torchdiffeq"):
        try:
            importlib.import_module(missing)
        except ImportError:
            stub: Any = types.ModuleType(missing)
            stub.odeint = stub.BrownianTree = None
            sys.modules[missing] = stub
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(path.parent)]
    utils: Any = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    sys.modules.setdefault("k_diffusion", package)
    sys.modules.setdefault("k_diffusion.utils", utils)
    return importlib.import_module("k_diffusion.sampling")


def _model(x: Any, sigma: Any) -> Any:
    return expectation(importlib.import_module("torch"), x, sigma[0])


def _solver(
    sampling: Any,
    function: str,
    suffix: str = "",
    *,
    draws: bool = False,
    steps: Callable[[int], int | None] = lambda n: n,
    options: dict[str, Any] | None = None,
) -> Solver:
    def run(x_T: Any, grid: grids.Grid) -> Any:
        torch: Any = importlib.import_module("torch")
        more = dict(options or {})
        noise = noises(x_T, grid) if draws else None
        if function.endswith(("_sde", "_ancestral")):
            rest = iter(np.zeros(grid.steps) if noise is None else noise)
            more["noise_sampler"] = lambda *_: torch.tensor(next(rest))
        with in_double(sampling, noise):
            return getattr(sampling, function)(
                _model, torch.tensor(x_T), torch.tensor(grid.noise_scale), disable=True, **more
            ).numpy()

    return Solver(function + suffix, run, steps=steps, package="k-diffusion", solves_ode=not draws)


def _along(sampling: Any, order: int, x_T: Any, grid: grids.Grid) -> Any:
    """DPM-Solver's singlestep methods along any grid; the step to clean data is the denoiser's."""
    torch: Any = importlib.import_module("torch")
    with in_double(sampling, None):
        solver = sampling.DPMSolver(_model, {})
        x = torch.tensor(x_T)
        for now, after in zip(grid.noise_scale[:-1], grid.noise_scale[1:], strict=True):
            if after == 0:
                return _model(x, torch.tensor([now])).numpy()
            times = solver.t(torch.tensor(now)), solver.t(torch.tensor(after))
            x, _ = getattr(solver, f"dpm_solver_{order}_step")(x, *times)
    return x.numpy()
