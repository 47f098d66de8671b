"""Which variants of the train step should be diffjax's own, by one rule over the measured rows.

    python -m benchmarks.gpu.choices DIR

prints the decisions for a folder of results. A variant that computes the same network is adopted
when it saves at least MARGIN of the time on every case where it was timed; one that changes the
network's width, when it does at least MARGIN more arithmetic a second. Variants that only show what
a feature gains (no donation, no fusion, full precision) are never adopted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu import results
from benchmarks.variants import VARIANTS

MARGIN = 0.03  # of the time; what is less is within the noise of a round
CONTROLS = ("", "precise", "kept", "unfused-norm")


class Choice(NamedTuple):
    """A decision about a variant.

    Attributes:
      variant: one of `variants.VARIANTS`.
      decision: "adopt", "reject" or "not measured".
      reason: the ratios it rests on.
    """

    variant: str
    decision: str
    reason: str


def decide(rows: Sequence[results.Row]) -> list[Choice]:
    """A choice for each variant that could become the default."""
    return [_decide(name, rows) for name in VARIANTS if name not in CONTROLS]


def _decide(name: str, rows: Sequence[results.Row]) -> Choice:
    wider = name.startswith("channels-")
    saved = {}
    for row in rows:
        if row["part"] != "steps" or row.get("variant") != name or not row.get("time_over_first"):
            continue
        gain = row["work_over_first"] if wider else 1.0
        saved[row["case"]] = row["time_over_first"] / gain  # the last measurement of a case counts
    if not saved:
        return Choice(name, "not measured", "")
    what = "time for the same arithmetic" if wider else "time"
    reason = ", ".join(f"{case}: {ratio:.3f}x the {what}" for case, ratio in saved.items())
    best = all(ratio <= 1.0 - MARGIN for ratio in saved.values())
    return Choice(name, "adopt" if best else "reject", reason)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.choices", description=__doc__)
    parser.add_argument("out", type=Path, help="a folder of results")
    folder = parser.parse_args().out
    if not (folder / results.ROWS).is_file():
        print(f"error: {folder} has no {results.ROWS}: run python -m benchmarks.gpu --out {folder}",
              file=sys.stderr)  # fmt: skip
        return 2
    for choice in decide(results.read(folder)):
        print(f"{choice.decision:13} {choice.variant:15} {choice.reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
