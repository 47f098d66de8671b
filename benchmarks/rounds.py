"""One task of one case, timed in rounds: every side once a round, so that noise hits all alike."""

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import cases
from benchmarks.cases import Case, Side
from benchmarks.variants import VARIANTS

# What docs/how_to/cpu.md recommends.
HUGE_PAGES = "glibc.malloc.hugetlb=1"
TRIAL_SECONDS = 0.5
MEASURE_SECONDS = 1.5
SLOW_FACTOR = 2.5  # over the best of its family: timed once, not again in every round
HOPELESS_FACTOR = 4.0  # and not run for the tasks and cases that follow


class Entry(NamedTuple):
    """What is known of one side.

    Attributes:
      side: who.
      seconds: of one repetition, one a round; one alone for a side left out of the rounds.
      parameters: of its network.
      forward_flops: of one pass of one image, or None.
      device: what it ran on.
      step_flops: of one training step of a whole batch, or None.
      compile_seconds: XLA's for the step, or None.
      cold_seconds: from the process's first line to the end of the first repetition.
      left_out: how many times slower than its family's best it is; None for one in the rounds.
      failed: why there are no figures; None where there are.
      not_run: the same, where it was not tried since it was hopeless before.
    """

    side: Side
    seconds: tuple[float, ...] = ()
    parameters: int = 0
    forward_flops: float | None = None
    device: str = ""
    step_flops: float | None = None
    compile_seconds: float | None = None
    cold_seconds: float = 0.0
    left_out: float | None = None
    failed: str | None = None
    not_run: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def in_rounds(self) -> bool:
        return self.failed is None and self.not_run is None and self.left_out is None


class Contest(NamedTuple):
    """One task of one case; `task` is one of cases.TASKS."""

    case: Case
    task: str
    entries: tuple[Entry, ...]


def hopeless(contests: Sequence[Contest]) -> dict[Side, str]:
    """The sides that were far behind their family in one of these, and how far."""
    return {
        entry.side: f"{entry.left_out:.1f} x slower in {result.case.name}'s {result.task}"
        for result in contests
        for entry in result.entries
        if entry.left_out is not None and entry.left_out > HOPELESS_FACTOR
    }


class WorkerFailed(Exception):
    """The worker said why, or died."""


class Worker:
    """The parent's end of a process that times one side (benchmarks/worker.py)."""

    def __init__(self, case: Case, task: str, side: Side, device: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", case.name, task, *side, device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, cwd=cases.ROOT, env=environment(device, side),
        )  # fmt: skip

    def answer(self, *, within: float | None = None) -> dict[str, Any]:
        """The next line; waits for it, `within` seconds at most.

        Raises:
          WorkerFailed: it holds an error, the process has ended, or it was too late.
        """
        assert self._process.stdout is not None
        if within is not None:
            ready, _, _ = select.select([self._process.stdout], [], [], max(within, 0.0))
            if not ready:
                raise WorkerFailed(f"no answer in {within:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"ended with code {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def measure(self, seconds: float, *, within: float | None = None) -> float:
        """Seconds of one step, as the mean over about `seconds`; see `answer` for `within`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: the answer says so
            print(json.dumps({"seconds": seconds}), file=self._process.stdin, flush=True)
        return float(self.answer(within=within)["seconds"])

    def close(self) -> None:
        """Ends the process; its memory is free when this returns."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return lines[-1] if lines else "nothing on stderr"


def environment(device: str, side: Side | None = None) -> dict[str, str]:
    """For a process that runs one side on one device."""
    chosen = dict(os.environ)
    if device == "cpu":
        chosen |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        chosen.setdefault("GLIBC_TUNABLES", HUGE_PAGES)  # for PyTorch, too
    else:
        first = chosen.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        # All sides are alive at once, so none may take the memory of the others.
        chosen |= {"CUDA_VISIBLE_DEVICES": first, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if side and side.family == "PyTorch":
        chosen["JAX_PLATFORMS"] = "cpu"  # it computes a table with jax, and no more
    for name, value in VARIANTS[side.variant].environment.items() if side else ():
        chosen[name] = f"{chosen.get(name, '')} {value}".strip()
    return chosen


def contest(
    case: Case,
    task: str,
    sides: Sequence[Side],
    *,
    rounds: int,
    device: str,
    hopeless: Mapping[Side, str],
    log: Callable[[str], None],
) -> Contest:
    """Times every side.

    Args:
      case: the network and its batch.
      task: one of cases.TASKS.
      sides: who takes part.
      rounds: measurements of each side.
      device: "cpu" or "gpu".
      hopeless: sides that are not worth their time, with the reason.
      log: where progress goes.
    """
    entries = {side: Entry(side, not_run=hopeless[side]) for side in sides if side in hopeless}
    workers: dict[Side, Worker] = {}
    trials: dict[Side, float] = {}

    def fail(side: Side, error: WorkerFailed) -> None:
        log(f"{case.name} {task} {side.name}: {error}")
        entries[side] = Entry(side, failed=str(error))
        workers.pop(side).close()

    try:
        # One after the other: a side that compiles has the machine for itself.
        for side in sides:
            if side in hopeless:
                continue
            workers[side] = Worker(case, task, side, device)
            try:
                entries[side] = Entry(side, **workers[side].answer())
                trials[side] = workers[side].measure(TRIAL_SECONDS)
                log(f"{case.name} {task} {side.name}: about {trials[side]:.3g} s")
            except WorkerFailed as error:
                fail(side, error)
        for side in list(workers):
            factor = trials[side] / min(
                trials[other] for other in trials if other.family == side.family
            )
            if factor > SLOW_FACTOR:
                workers.pop(side).close()
                entries[side] = entries[side]._replace(seconds=(trials[side],), left_out=factor)
        for i in range(rounds):
            log(f"{case.name} {task}: round {i + 1} of {rounds}")
            for side in list(workers):
                try:
                    seconds = workers[side].measure(MEASURE_SECONDS)
                except WorkerFailed as error:
                    fail(side, error)
                    continue
                entries[side] = entries[side]._replace(seconds=(*entries[side].seconds, seconds))
    finally:
        for worker in workers.values():
            worker.close()
    return Contest(case, task, tuple(entries[side] for side in sides))
