"""Measures and writes benchmarks/samplers.md and benchmarks/samplers.png."""

from pathlib import Path

import jax

from benchmarks.samplers import one_loop, report, same_numbers
from benchmarks.samplers.mixture import SIGMA_MAX, rms, solution, starts
from benchmarks.samplers.ours import OURS, Solver, grid_for, observed_order

HERE = Path(__file__).parent.parent


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """The whole page; most of half an hour on two cores."""
    jax.config.update("jax_enable_x64", True)
    x_T = starts()
    exact = solution(x_T, SIGMA_MAX, 1e-7)
    theirs = same_numbers.peers()

    def errors(solver: Solver) -> list[float | None]:
        wanted = [grid_for(solver, n) for n in report.EVALUATIONS]
        return [None if grid is None else rms(solver.run(x_T, grid), exact) for grid in wanted]

    rows = []
    for solver in (*OURS, *(s for s in theirs.values() if s.solves_ode)):
        order = observed_order(solver) if solver.package == "diffjax" else None
        rows.append(report.Row(solver, order, errors(solver)))
        _say(f"{solver.package} {solver.name} {order} {rows[-1].errors}")
    same = []
    for pair in same_numbers.PAIRS:
        peer = theirs.get((pair.package, pair.theirs))
        if peer:
            same.append(report.Same(pair, same_numbers.difference(pair, peer, clean=True),
                                    same_numbers.difference(pair, peer, clean=False)))  # fmt: skip
            _say(f"{pair.theirs} {pair.ours} {same[-1].to_clean:.1e} {same[-1].to_noise:.1e}")
    costs = one_loop.measure_all(_say)
    report.plot(rows, HERE / "samplers.png")
    (HERE / "samplers.md").write_text(report.page(rows, same, costs))


if __name__ == "__main__":
    main()
