"""Part "steps": images a second of the train step, against torch.compile and variants.

The sides of a group are alive at once: they compile side by side, and are timed in turn.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
from typing import NamedTuple

from benchmarks import cases, machine
from benchmarks.cases import Case, Side
from benchmarks.gpu import choices, results
from benchmarks.gpu.part import Part
from benchmarks.rounds import Entry, Worker, WorkerFailed, environment

ROUNDS = 3
SECONDS = 1.0  # of a side in a round
TIMED = 5.0  # seconds of the rounds of one side, with its trial
PIPELINE_SECONDS = 20.0

OURS = Side("diffjax", "xla", "bfloat16")
THEIRS = Side("PyTorch", "compile", "bfloat16")


class Group(NamedTuple):
    """A case, and who is timed on it together."""

    case: str
    sides: tuple[Side, ...]


def _variants(*names: str, dtype: str = "bfloat16") -> tuple[Side, ...]:
    return tuple(Side("diffjax", "xla", dtype, name) for name in names)


GROUPS = (
    Group("cifar10", (OURS, THEIRS, *_variants("", "precise", dtype="float32"))),
    Group("fashion", (OURS, THEIRS, *_variants("cudnn", "channels-88", "channels-128"))),
    Group("cifar10-512", (OURS, THEIRS)),
    Group("dit", (OURS, THEIRS, *_variants("cudnn", "unrolled"))),
    Group("28x28", (OURS, THEIRS, *_variants("", dtype="float32"))),
    Group("cifar10", (OURS, *_variants("heads-64", "heads-64-cudnn", "triton-gemm"))),
    Group("cifar10", (OURS, *_variants("half-norm", "unfused-norm", "kept"))),
    Group("28x28", (OURS, *_variants("scan-8", "resident", "kept"))),
    Group("fashion", (OURS, *_variants("scan-8", "resident", "half-norm"))),
)


def _dry() -> tuple[Group, ...]:
    ours = _variants("", "scan-8", "resident", dtype="float32")
    theirs = (Side("PyTorch", "eager", "float32"),) if importlib.util.find_spec("torch") else ()
    return (Group("smoke", (*ours, *theirs)),)


def run(part: Part) -> None:
    """The data pipeline alone, then the groups, as far as the time goes."""
    with part.attempt("data pipeline alone"):
        _pipeline(part)
    groups = _dry() if part.dry else GROUPS
    for number, group in enumerate(groups):
        what = f"{group.case}, group {number + 1} of {len(groups)}"
        if part.left() < len(group.sides) * TIMED:
            part.record(what, failed="no time was left")
            continue
        with part.attempt(what):
            _time(part, group)
    for choice in choices.decide(results.read(part.out)):
        part.record(f"default: {choice.variant}", decision=choice.decision, reason=choice.reason)


def _pipeline(part: Part) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.probes", "pipeline"], capture_output=True, text=True,
        cwd=cases.ROOT, env=environment(part.device), timeout=PIPELINE_SECONDS, check=True,
    )  # fmt: skip
    part.record("data pipeline alone, 28x28", **json.loads(done.stdout.splitlines()[-1]))


def _time(part: Part, group: Group) -> None:
    case = cases.load(group.case, part.device)
    workers = {side: Worker(case, "train", side, part.device) for side in group.sides}
    entries: dict[Side, Entry] = {}

    def fail(side: Side, error: Exception) -> None:
        workers.pop(side).close()
        part.record(f"{case.name}, {side.name}", failed=str(error)[:300])

    try:
        for side in group.sides:
            others = TIMED * len(workers)
            try:
                answer = workers[side].answer(within=part.left() - others)
                entries[side] = Entry(side, **answer)
            except WorkerFailed as error:
                fail(side, error)
        for _ in range(ROUNDS):
            for side in list(workers):
                try:
                    seconds = workers[side].measure(SECONDS, within=part.left())
                except WorkerFailed as error:
                    fail(side, error)
                    continue
                entry = entries[side]
                entries[side] = entry._replace(seconds=(*entry.seconds, seconds))
    finally:
        for worker in workers.values():
            worker.close()
    for side in workers:
        _record(part, case, entries[side], entries.get(group.sides[0]))


def _record(part: Part, case: Case, entry: Entry, first: Entry | None) -> None:
    """A side's row; `time_over_first` is the median of the rounds' ratios to the first side."""
    rate = case.batch_size / entry.median
    flops = entry.step_flops
    peak = machine.peak(entry.device, entry.side.dtype)
    ratio = work = None
    if first is not None and first is not entry and first.seconds:
        pairs = zip(entry.seconds, first.seconds, strict=True)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        work = flops and first.step_flops and flops / first.step_flops
    part.record(
        f"{case.name}, {entry.side.name}",
        case=case.name, variant=entry.side.variant, batch=case.batch_size,
        milliseconds=entry.median * 1e3, images_per_second=rate, time_over_first=ratio,
        work_over_first=work, teraflops=flops and flops / entry.median / 1e12,
        share_of_peak=flops / entry.median / peak if flops and peak else None,
        compile_seconds=entry.compile_seconds, cold_seconds=entry.cold_seconds,
        million_parameters=entry.parameters / 1e6, device=entry.device,
    )  # fmt: skip
