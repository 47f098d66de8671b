"""Measurements as Markdown."""

import math
import statistics
from collections.abc import Sequence

from benchmarks import cases, machine
from benchmarks.rounds import Contest, Entry

HEADER = (
    "| side | seconds (range) | images/s | over PyTorch's best (range) | over stock (range) "
    "| GFLOP/s |\n| --- | --- | --- | --- | --- | --- |"
)
TITLES = {
    "train": "One training step (uint8 batch, loss, gradient, clipping, Adam, EMA)",
    "sample": f"A batch of samples, {cases.SAMPLING_STEPS} network evaluations (DDIM)",
}
PASSES = {"train": 3, "sample": cases.SAMPLING_STEPS}  # backward is counted as two forward


def best(entries: Sequence[Entry], family: str) -> Entry | None:
    """The family's side with the lowest median in the rounds."""
    own = [entry for entry in entries if entry.side.family == family and entry.in_rounds]
    return min(own, key=lambda entry: entry.median, default=None)


def ratios(entry: Entry, other: Entry) -> list[float]:
    """entry / other, round by round: less than 1 where `entry` is faster."""
    return [a / b for a, b in zip(entry.seconds, other.seconds, strict=True)]


def number(value: float) -> str:
    """Three digits that matter, and no exponent.

    >>> [number(x) for x in (0.012345, 1.5, 1234.5)]
    ['0.0123', '1.50', '1234']
    """
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{decimals}f}"


def spread(values: Sequence[float]) -> str:
    """Median, and range where there is one: "1.20 (1.00 to 1.30)"."""
    middle = number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values))} to {number(max(values))})"


def contest(result: Contest) -> str:
    """One table, and what it says in a line."""
    entries = result.entries
    flops = next((e.forward_flops for e in entries if e.forward_flops), None)
    rows = [_row(result, entry, flops) for entry in entries]
    batch = f"batch {result.case.images(result.task)}"
    lines = [f"### {TITLES[result.task]}, {batch}", "", HEADER, *rows, *_verdict(entries)]
    return "\n".join([*lines, "", *_devices(entries)])


def case_heading(results: Sequence[Contest]) -> str:
    """A case's title and its networks' sizes."""
    case = results[0].case
    sizes = {
        entry.side.family: f"{entry.side.family} {entry.parameters / 1e6:.2f} M"
        for result in results for entry in result.entries if entry.parameters
    }  # fmt: skip
    return f"## {case.name}: {case.title}\n\nParameters: {', '.join(sizes.values())}."


def document(
    contests: Sequence[Contest], extras: Sequence[tuple[str, str]], *, device: str, rounds: int
) -> str:
    """The whole report.

    Args:
      contests: in the order of the cases.
      extras: (what, figure) pairs; may be empty.
      device: "cpu" or "gpu".
      rounds: of the contests.
    """
    parts = [
        "# diffjax and PyTorch",
        f"Written by `python -m benchmarks`; {rounds} rounds, in each of which every side is timed "
        "once. Ratios are medians of the rounds' own ratios; below 1 the row's side is faster. "
        "float32 is TF32 on a GPU.",
        machine.describe(device),
    ]
    for name in dict.fromkeys(result.case.name for result in contests):
        own = [result for result in contests if result.case.name == name]
        parts += [case_heading(own), *map(contest, own)]
    if extras:
        rows = [f"| {what} | {figure} |" for what, figure in extras]
        parts += ["## diffjax alone", "\n".join(["| what | figure |", "| --- | --- |", *rows])]
    return "\n\n".join(parts) + "\n"


def _row(result: Contest, entry: Entry, flops: float | None) -> str:
    side = f"{entry.side.family} {entry.side.mode}, {entry.side.dtype}"
    if entry.not_run is not None:
        return f"| {side} | not run: {entry.not_run} | | | | |"
    if entry.failed is not None:
        reason = entry.failed.replace("|", "/")
        return f"| {side} | failed: {reason} | | | | |"
    rate = result.case.images(result.task) / entry.median
    seconds = spread(entry.seconds)
    if entry.left_out is not None:
        seconds += f"; left out of the rounds: {entry.left_out:.1f} x slower"
    cells = [side, seconds, number(rate)]
    for family in ("PyTorch", "stock"):
        other = best(result.entries, family)
        comparable = entry.in_rounds and other is not None and other is not entry
        cells.append(spread(ratios(entry, other)) if comparable and other else "")
    cells.append(_speed(entry, rate, flops, PASSES[result.task]))
    return "| " + " | ".join(cells) + " |"


def _speed(entry: Entry, rate: float, flops: float | None, passes: int) -> str:
    if flops is None:
        return ""
    speed = rate * flops * passes
    limit = machine.peak(entry.device, entry.side.dtype)
    return number(speed / 1e9) + (f" ({speed / limit:.1%} of the peak)" if limit else "")


def _devices(entries: Sequence[Entry]) -> list[str]:
    """Where each side ran, and by which kernels: "auto" does not say by itself."""
    found = {f"{e.side.family} {e.side.mode}": e.device for e in entries if e.device}
    return ["; ".join(f"{name}: {device}" for name, device in found.items()) + "."]


def _verdict(entries: Sequence[Entry]) -> list[str]:
    ours = best(entries, "diffjax")
    lines = []
    for family in ("PyTorch", "stock"):
        other = best(entries, family)
        if ours and other:
            times = [1 / ratio for ratio in ratios(ours, other)]
            lines.append(
                f"diffjax's best ({ours.side.mode}, {ours.side.dtype}) is {spread(times)} times as "
                f"fast as {family}'s ({other.side.mode}, {other.side.dtype})."
            )
    return ["", "\n\n".join(lines)] if lines else []
