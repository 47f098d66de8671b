"""The page and the plot."""

import datetime
import math
import platform
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import matplotlib

from benchmarks.samplers import mixture, one_loop, same_numbers
from benchmarks.samplers.ours import Solver

EVALUATIONS = (5, 10, 20, 50)


class Row(NamedTuple):
    """A solver's observed order (ours alone) and its RMS errors at EVALUATIONS."""

    solver: Solver
    order: float | None
    errors: list[float | None]


class Same(NamedTuple):
    """A pair and the largest differences to clean data and to noise."""

    pair: same_numbers.Pair
    to_clean: float
    to_noise: float


def page(rows: list[Row], same: list[Same], costs: list[one_loop.Cost]) -> str:
    """benchmarks/samplers.md."""
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("jax", "diffusers", "k-diffusion", "torch")
        if any(True for _ in metadata.distributions(name=name))
    )
    head = [
        "# Samplers",
        "",
        f"Written by `python -m benchmarks.samplers`, {datetime.date.today()}, Python "
        f"{platform.python_version()}, {versions}.",
        "",
    ]
    return "\n".join([*head, *_errors(rows), *_same(same), *_one_loop(costs)])


def _errors(rows: list[Row]) -> list[str]:
    lines = [
        "## Errors",
        "",
        f"A mixture of {len(mixture.CENTRES)} Gaussians in two dimensions with its exact denoiser, "
        f"{mixture.POINTS} starts at sigma = {mixture.SIGMA_MAX:g}, Karras' grid (rho = 7, "
        f"sigma_min = {mixture.SIGMA_MIN:g}, then 0), float64. "
        "Errors are root mean squares against the probability-flow ODE solved by DOP853 to 1e-12. "
        "The order is measured from sigma 5 to 0.3 between 60 and 120 steps, even in log sigma. "
        "Singlestep solvers have their stages where the papers put them; where their steps do not "
        "divide the evaluations, they make fewer. Multistep solvers that begin with a step of "
        "order 1 can show no more than order 2 (3 where it is corrected). Stochastic samplers have "
        "another aim than the ODE and are left out.",
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
    lines.append("")
    for name, is_ours in (("diffjax", True), ("peers", False)):
        finite = [
            (row.errors[1], row.solver.name)
            for row in rows
            if (row.solver.package == "diffjax") == is_ours
            and row.errors[1] is not None
            and math.isfinite(row.errors[1])
        ]
        if finite:
            error, who = min(finite)
            lines.append(f"Best of {name} at 10 evaluations: {who}, {error:.2e}.")
    return [*lines, "", "![Error against evaluations](samplers.png)", ""]


def _same(same: list[Same]) -> list[str]:
    def shown(difference: float) -> str:
        return "NaN" if math.isnan(difference) else f"{difference:.0e}"

    lines = [
        "## Same numbers",
        "",
        f"The largest difference between a peer's x and ours after {same_numbers.STEPS} steps of "
        f"that grid from {same_numbers.STARTS} starts, in float64: to clean data, and stopped "
        f"before. Noise, where there is any, is ours. Above {same_numbers.SAME:g} it is explained.",
        "",
        "Peers compute as they are, but for names they look up: `torch.float32` is float64 and "
        "their draws are ours. Their levels are the grid's; orders fall towards the end only where "
        "a step to clean data asks for it. diffusers' DDIM inverse is asked at the level where x "
        "is, as ours; its pipelines ask one step ahead.",
        "",
        "Without a counterpart in diffjax: k-diffusion's `sample_dpmpp_sde` with eta above 0. "
        "`dpm_solver_adaptive` takes no grid's steps: tests compare it with `sample_dpm_adaptive`.",
        "",
        "| package | solver | diffjax | to clean data | to noise | why |",
        "| --- " * 6 + "|",
    ]
    for pair, to_clean, to_noise in same:
        lines.append(
            f"| {pair.package} | {pair.theirs} | {pair.ours} | {shown(to_clean)} | "
            f"{shown(to_noise)} | {pair.why} |"
        )
    return [*lines, ""]


def _one_loop(costs: list[one_loop.Cost]) -> list[str]:
    lines = [
        "## One loop",
        "",
        f"{one_loop.MANY} steps over {one_loop.FEW}: bytes (XLA's temporary, argument and output "
        "memory), instructions of the optimised program, and CPU time to compute the coefficients, "
        f"trace, lower and compile, the least of {one_loop.ROUNDS} in turn without a cache. Where "
        "the instructions are as many, the times differ by the machine's noise, up to 0.2 in "
        "single rows of single runs, and by the coefficients, which take milliseconds. A U-Net of "
        "700,000 parameters, x of "
        f"{one_loop.SHAPE}, float32, on a CPU.",
        "",
        "| sampler | memory | instructions | compile time | 10 steps, MB | 10 steps, s |",
        "| --- " * 6 + "|",
    ]
    for cost in costs:
        lines.append(
            f"| {cost.name} | {cost.memory:.3f} | {cost.instructions:.3f} | {cost.compiling:.2f} | "
            f"{cost.few_bytes / 1e6:.1f} | {cost.few_seconds:.2f} |"
        )
    return [*lines, ""]


def plot(rows: list[Row], path: Path) -> None:
    """Errors of diffjax's solvers against evaluations."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    ours = [row for row in rows if row.solver.package == "diffjax"]
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
