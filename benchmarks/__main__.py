"""Times diffjax against PyTorch and against plain Flax, and writes a report.

A complete run (all cases, all sides, 5 rounds or more, with the extras) replaces
benchmarks/RESULTS.md when it has ended; any other is printed, and written where --output says.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import cases, extras, machine, report
from benchmarks.rounds import Contest, contest, hopeless
from diffjax.errors import UserError
from diffjax.files import atomic_write

RESULTS = cases.ROOT / "benchmarks" / "RESULTS.md"
COMPLETE_ROUNDS = 5


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--cases", nargs="+", choices=(*cases.CASES, *cases.OTHERS), default=cases.CASES,
        help="which networks; smoke: a tiny one, to see that everything runs",
    )  # fmt: skip
    parser.add_argument("--tasks", nargs="+", choices=cases.TASKS, default=cases.TASKS)
    parser.add_argument(
        "--side", nargs="+", default=[], metavar="TEXT",
        help="only sides whose name has one of these in it, such as compile or diffjax-xla",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "gpu"), help="by default the GPU, if any")
    parser.add_argument(
        "--extras", action=argparse.BooleanOptionalAction, default=True,
        help="import times, first step, data pipeline, memory",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="where the report goes")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """The report that the command line asks for.

    Raises:
      UserError: no side is left, or no round.
    """
    device = options.device or machine.default_device()
    if options.rounds < 1:
        raise UserError(
            f"--rounds {options.rounds}: expected 1 or more: leave it out for the default"
        )
    sides = [s for s in cases.SIDES if any(text in s.name for text in options.side or [""])]
    if not sides:
        raise UserError(
            f"--side {' '.join(options.side)}: expected a part of one of "
            f"{', '.join(s.name for s in cases.SIDES)}"
        )
    contests: list[Contest] = []
    for name in options.cases:
        case = cases.load(name, device)
        for task in options.tasks:
            contests.append(
                contest(
                    case,
                    task,
                    sides,
                    rounds=options.rounds,
                    device=device,
                    hopeless=hopeless(contests),
                    log=_say,
                )
            )
    rows = []
    if options.extras:
        rows = extras.measure(device, training_rate=_demo_rate(contests), log=_say)
    return report.document(contests, rows, device=device, rounds=options.rounds)


def main(arguments: list[str]) -> int:
    """Runs, prints and writes; 2 for bad input."""
    options = parse(arguments)
    complete = (
        tuple(options.cases) == cases.CASES
        and tuple(options.tasks) == cases.TASKS
        and not options.side
        and options.extras
        and options.rounds >= COMPLETE_ROUNDS
    )
    output = options.output or (RESULTS if complete else None)
    try:
        text = run(options)
        if output:
            atomic_write(output, lambda file: file.write(text.encode()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


def _demo_rate(contests: list[Contest]) -> float | None:
    """Images a second of the demo's training on diffjax's best side."""
    for result in contests:
        ours = report.best(result.entries, "diffjax")
        if (result.case.name, result.task) == ("demo", "train") and ours:
            return result.case.batch_size / ours.median
    return None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
