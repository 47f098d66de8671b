"""Every solver on a Gaussian mixture whose ODE is solved to rounding: orders, errors, a plot.

    python -m benchmarks.samplers

writes benchmarks/samplers.md and benchmarks/samplers.png. Where diffusers and k-diffusion are
installed (`pip install --no-deps k-diffusion`) their solvers are measured in the same run, on the
same noise and noise levels.
"""

import datetime
import functools
import importlib
import platform
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from scipy.integrate import solve_ivp

import diffjax as dj
from diffjax import grids, samplers, schedules

HERE = Path(__file__).parent
EVALUATIONS = (5, 10, 20, 50)
CENTRES = np.array([[-1.0, -0.5], [0.2, 1.1], [0.9, -0.8], [1.2, 0.4]])
STDS = np.array([0.1, 0.25, 0.15, 0.05])
WEIGHTS = np.array([0.3, 0.3, 0.25, 0.15])
POINTS = 256
SIGMA_MAX, SIGMA_MIN = 80.0, 0.002
SCHEDULE = schedules.karras(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)


def expectation(xp: Any, x: Any, sigma: Any) -> Any:
    """E[x_0 | x_0 + sigma eps = x] of the mixture; x (B, 2), in numpy, jax.numpy or torch."""
    variance = xp.asarray(STDS**2) + sigma**2  # (K,)
    difference = x[:, None, :] - xp.asarray(CENTRES)  # (B, K, 2)
    logits = xp.asarray(np.log(WEIGHTS)) - xp.log(variance) - (difference**2).sum(-1) / 2 / variance
    logits = logits - logits.max(1)[:, None] if xp is not _torch() else logits
    share = _softmax(xp, logits)
    each = xp.asarray(CENTRES) + (xp.asarray(STDS**2) / variance)[:, None] * difference
    return (share[..., None] * each).sum(1)


def _softmax(xp: Any, logits: Any) -> Any:
    if xp is _torch():
        return xp.softmax(logits, 1)
    share = xp.exp(logits)
    return share / share.sum(1)[:, None]


@functools.cache
def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def denoise(x_t: Any, t: Any, cond: Any = None) -> dj.Estimates:
    """The exact denoiser as diffjax asks it; signal is 1."""
    sigma = SCHEDULE(jnp.asarray(t, x_t.dtype)).noise_scale
    x_0 = expectation(jnp, x_t, sigma)
    return dj.Estimates(x_0, (x_t - x_0) / sigma)


def solution(x: np.ndarray, high: float, low: float) -> np.ndarray:
    """The probability-flow ODE from noise level high to low, by DOP853 in log sigma."""

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        x = flat.reshape(-1, 2)
        return (x - expectation(np, x, np.exp(log_sigma))).ravel()

    solved = solve_ivp(
        slope, (np.log(high), np.log(low)), x.ravel(), "DOP853", rtol=1e-12, atol=1e-12
    )
    return np.asarray(solved.y[:, -1].reshape(-1, 2))


class Solver(NamedTuple):
    """One row.

    Attributes:
      name: in the table.
      run: (x_T, grid) -> x.
      steps: evaluations -> steps of the grid; None where it takes no such number.
      stages: fractions of `grids.with_stages`, that it wants its steps to have.
      package: who computes it.
    """

    name: str
    run: Callable[[Any, grids.Grid], Any]
    steps: Callable[[int], int | None] = lambda n: n
    stages: tuple[float, ...] = ()
    package: str = "diffjax"


def _ours(name: str, sampler: Callable[..., Any], **more: Any) -> Solver:
    def run(x_T: Any, grid: grids.Grid) -> Any:
        return jax.jit(lambda x: sampler(denoise, x, grid=grid).x_0)(jnp.asarray(x_T))

    return Solver(name, run, **more)


HALF, THIRDS = (0.5,), (1 / 3, 2 / 3)
OURS = (
    _ours("ddim, euler", samplers.ddim),
    _ours("heun", samplers.heun, steps=lambda n: (n + 1) // 2),
    _ours("dpm2", samplers.dpm2, stages=HALF),
    _ours("dpm_solver_2", samplers.dpm_solver_2, stages=HALF),
    _ours("dpm_solver_3", samplers.dpm_solver_3, stages=THIRDS),
    _ours("dpm_solver_pp_2s", samplers.dpm_solver_pp_2s, stages=HALF),
    _ours("midpoint", samplers.midpoint),
    _ours("dpm_solver_pp_2m", samplers.dpm_solver_pp_2m),
    _ours(
        "dpm_solver_pp_3m, published", functools.partial(samplers.dpm_solver_pp_3m, published=True)
    ),
    _ours("dpm_solver_pp_3m", samplers.dpm_solver_pp_3m),
    _ours("unipc 1", functools.partial(samplers.unipc, order=1)),
    _ours("unipc 2, bh1", functools.partial(samplers.unipc, variant="bh1")),
    _ours("unipc 2, bh2", samplers.unipc),
    _ours("unipc 3", functools.partial(samplers.unipc, order=3)),
    _ours("deis 2, t", functools.partial(samplers.deis, order=2, schedule=SCHEDULE)),
    _ours("deis 3, t", functools.partial(samplers.deis, order=3, schedule=SCHEDULE)),
    _ours("deis 3, log_rho", functools.partial(samplers.deis, order=3, variable="log_rho")),
    _ours("lms 4", samplers.lms),
    *(_ours(f"ipndm {k}", functools.partial(samplers.ipndm, order=k)) for k in (2, 3, 4)),
    _ours("plms", samplers.plms, steps=lambda n: n - 1),
)


def grid_for(solver: Solver, evaluations: int, *, clean: bool = True) -> grids.Grid | None:
    """Karras' grid (rho = 7) on which the solver makes so many evaluations."""
    steps = solver.steps(evaluations)
    if steps is None:
        return None
    k = len(solver.stages) + 1
    if k == 1:
        grid = grids.karras(SCHEDULE, steps)
    else:
        if (steps - 1) % k:
            steps = 1 + (steps - 1) // k * k  # the step to clean data is alone
        if steps <= 1:
            return None
        outer = grids.karras(SCHEDULE, 1 + (steps - 1) // k)
        grid = grids.with_stages(SCHEDULE, outer, fractions=solver.stages)
    return grid if clean else grids.stop_before_clean(grid)


def starts() -> np.ndarray:
    """Draws of the noised mixture at the highest level."""
    rng = np.random.default_rng(0)
    which = rng.choice(len(WEIGHTS), POINTS, p=WEIGHTS)
    width = np.sqrt(STDS[which] ** 2 + SIGMA_MAX**2)
    return np.asarray(CENTRES[which] + width[:, None] * rng.normal(size=(POINTS, 2)))


def rms(x: Any, exact: np.ndarray) -> float:
    return float(np.sqrt(np.square(np.asarray(x) - exact).mean()))


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


# Peers -------------------------------------------------------------------------------------------


def diffusers_solvers() -> list[Solver]:
    """diffusers' schedulers that read noise levels, in float64."""
    try:
        diffusers: Any = importlib.import_module("diffusers")
    except ImportError:
        return []
    torch = _torch()
    torch.set_default_dtype(torch.float64)

    def solver(name: str, kind: str, *, unscaled: bool = False, **options: Any) -> Solver:
        def run(x_T: Any, grid: grids.Grid) -> Any:
            chosen = dict(options)
            if "solver_order" in options and grid.noise_scale[-1] > 0:
                # Its order is kept to the end, as ours is where the end has noise.
                chosen["lower_order_final"] = False
                if "final_sigmas_type" in chosen:
                    chosen["final_sigmas_type"] = "sigma_min"
            scheduler = getattr(diffusers, kind)(1000, prediction_type="sample", **chosen)
            scheduler.set_timesteps(grid.steps)
            scheduler.timesteps = torch.arange(grid.steps, 0, -1.0)
            scheduler.num_inference_steps = grid.steps
            scheduler.sigmas = torch.tensor(grid.noise_scale)
            scheduler.set_begin_index(0)
            scheduler.is_scale_input_called = True
            signal = np.ones(grid.steps + 1) if unscaled else 1 / np.hypot(1, grid.noise_scale)
            x = torch.tensor(x_T) * signal[0]
            for i, t in enumerate(scheduler.timesteps):
                x_0 = expectation(torch, x / signal[i], torch.tensor(grid.noise_scale[i]))
                x = scheduler.step(x_0, t, x).prev_sample
            return (x / signal[-1]).numpy()

        return Solver(name, run, package="diffusers")

    multistep, unipc = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
    zero: dict[str, Any] = {"final_sigmas_type": "zero"}
    return [
        solver("Euler", "EulerDiscreteScheduler", unscaled=True),
        solver("LMS", "LMSDiscreteScheduler", unscaled=True),
        solver("DPM-Solver++ 2M", multistep, solver_order=2, **zero),
        solver("DPM-Solver++ 3M", multistep, solver_order=3, **zero),
        solver("UniPC 2, bh1", unipc, solver_order=2, solver_type="bh1", **zero),
        solver("UniPC 2, bh2", unipc, solver_order=2, **zero),
        solver("UniPC 3, bh2", unipc, solver_order=3, **zero),
        solver("DEIS 3", "DEISMultistepScheduler", solver_order=3),
    ]


def k_diffusion_solvers() -> list[Solver]:
    """k-diffusion's samplers, from its sampling.py alone: the rest of it wants much more."""
    torch = _torch()
    try:
        place = metadata.distribution("k-diffusion").locate_file("k_diffusion/sampling.py")
    except metadata.PackageNotFoundError:
        return []
    for missing in ("torchsde", "torchdiffeq"):
        try:
            importlib.import_module(missing)
        except ImportError:
            stub: Any = types.ModuleType(missing)
            stub.odeint = stub.BrownianTree = None
            sys.modules[missing] = stub
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(Path(str(place)).parent)]
    utils: Any = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    sys.modules.setdefault("k_diffusion", package)
    sys.modules.setdefault("k_diffusion.utils", utils)
    sampling = importlib.import_module("k_diffusion.sampling")

    def model(x: Any, sigma: Any) -> Any:
        return expectation(torch, x, sigma[0])

    def solver(name: str, function: str, **more: Any) -> Solver:
        options = more.pop("options", {})

        def run(x_T: Any, grid: grids.Grid) -> Any:
            sample = getattr(sampling, function)
            sigmas = torch.tensor(grid.noise_scale)
            return sample(model, torch.tensor(x_T), sigmas, disable=True, **options).numpy()

        return Solver(name, run, package="k-diffusion", **more)

    return [
        solver("sample_euler", "sample_euler"),
        solver("sample_heun", "sample_heun", steps=lambda n: (n + 1) // 2),
        solver("sample_dpm_2", "sample_dpm_2", steps=lambda n: (n + 1) // 2),
        solver("sample_lms", "sample_lms"),
        solver(
            "sample_dpmpp_2s", "sample_dpmpp_2s_ancestral", steps=lambda n: (n + 1) // 2,
            options={"eta": 0.0},
        ),
        solver("sample_dpmpp_2m", "sample_dpmpp_2m"),
        solver("sample_dpmpp_3m", "sample_dpmpp_3m_sde",
               options={"eta": 0.0, "noise_sampler": lambda *_: 0.0}),
    ]  # fmt: skip


# Report ------------------------------------------------------------------------------------------


def measure(solver: Solver, x_T: np.ndarray, exact: np.ndarray) -> list[float | None]:
    """RMS errors at EVALUATIONS."""
    errors: list[float | None] = []
    for n in EVALUATIONS:
        grid = grid_for(solver, n)
        errors.append(None if grid is None else rms(solver.run(x_T, grid), exact))
    return errors


def report(rows: list[tuple[Solver, float | None, list[float | None]]]) -> str:
    """The page."""
    best = {
        name: min((errors[1] or np.inf, solver.name) for solver, _, errors in rows
                  if (solver.package == "diffjax") == ours)
        for name, ours in (("diffjax", True), ("peers", False))
        if any((solver.package == "diffjax") == ours for solver, _, _ in rows)
    }  # fmt: skip
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("jax", "diffusers", "k-diffusion", "torch")
        if any(True for _ in metadata.distributions(name=name))
    )
    lines = [
        "# Samplers",
        "",
        f"Written by `python -m benchmarks.samplers`, {datetime.date.today()}, Python "
        f"{platform.python_version()}, {versions}; float64.",
        "",
        f"A mixture of {len(CENTRES)} Gaussians in two dimensions with its exact denoiser, "
        f"{POINTS} starts at sigma = {SIGMA_MAX:g}, Karras' grid (rho = 7, sigma_min = "
        f"{SIGMA_MIN:g}, then 0). "
        "Errors are root mean squares against the probability-flow ODE solved by DOP853 to 1e-12. "
        "The order is measured from sigma 5 to 0.3 between 60 and 120 evaluations, even in log "
        "sigma. Singlestep solvers have their stages where the papers put them; where their steps "
        "do not divide the evaluations, they make fewer. Multistep solvers that begin with a step "
        "of order 1 can show no more than order 2 (3 where it is corrected).",
        "",
        "| package | solver | observed order | "
        + " | ".join(f"{n} evaluations" for n in EVALUATIONS)
        + " |",
        "| --- " * (3 + len(EVALUATIONS)) + "|",
    ]
    for solver, order, errors in rows:
        cells = ["" if e is None else f"{e:.2e}" for e in errors]
        known = "" if order is None else f"{order:.2f}"
        lines.append(f"| {solver.package} | {solver.name} | {known} | {' | '.join(cells)} |")
    lines += [""]
    for name, (error, who) in best.items():
        lines.append(f"Best of {name} at 10 evaluations: {who}, {error:.2e}.")
    return "\n".join([*lines, "", "![Error against evaluations](samplers.png)", ""])


def plot(rows: list[tuple[Solver, float | None, list[float | None]]], path: Path) -> None:
    """Errors of diffjax's solvers against evaluations."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    ours = [row for row in rows if row[0].package == "diffjax"]
    for i, (solver, _, errors) in enumerate(ours):
        points = [(n, e) for n, e in zip(EVALUATIONS, errors, strict=True) if e is not None]
        axes.loglog(
            *zip(*points, strict=True), "o-" if i < 20 else "s--", color=colours[i % 20],
            label=solver.name, markersize=3, linewidth=1,
        )  # fmt: skip
    axes.set_xlabel("network evaluations")
    axes.set_ylabel("RMS error")
    axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measures and writes."""
    jax.config.update("jax_enable_x64", True)
    x_T = starts()
    exact = solution(x_T, SIGMA_MAX, 1e-7)
    rows: list[tuple[Solver, float | None, list[float | None]]] = []
    for solver in (*OURS, *diffusers_solvers(), *k_diffusion_solvers()):
        order = observed_order(solver) if solver.package == "diffjax" else None
        rows.append((solver, order, measure(solver, x_T, exact)))
        print(solver.package, solver.name, order, rows[-1][2], flush=True)
    plot(rows, HERE / "samplers.png")
    (HERE / "samplers.md").write_text(report(rows))


if __name__ == "__main__":
    main()
