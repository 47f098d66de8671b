"""A process that holds one side of one task, and times it when asked.

    python -m benchmarks.worker CASE TASK FAMILY MODE DTYPE VARIANT DEVICE

Says {"parameters": ..., "forward_flops": ..., "device": ..., ...} on stdout when it is ready, then
for each line {"seconds": s} on stdin repeats the task for about that long and answers
{"seconds": one step's, "repetitions": n}. Where it fails, it says {"error": why} and ends.
"""

import importlib
import json
import math
import os
import sys
import time
import traceback
from typing import Any, TextIO

from benchmarks import cases
from benchmarks.workload import Workload

# The first compiles; a recorded CUDA graph, and a compiled step's second shape, need some more.
WARM_UP = 3
SLOW = 5.0  # seconds: after a step of these there is nothing left to warm up


def main() -> int:
    """Serves until stdin ends."""
    answers = _own_stdout()

    def log(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        name, task, family, mode, dtype, variant, device = sys.argv[1:]
        start = time.perf_counter()
        case = cases.load(name, device)
        workload = _build(case, task, cases.Side(family, mode, dtype, variant), device)
        _time(workload, 1)
        cold = time.perf_counter() - start
        estimate = _warm_up(workload)
        log(
            {
                "parameters": workload.parameters,
                "forward_flops": workload.forward_flops,
                "device": workload.device,
                "step_flops": workload.step_flops,
                "compile_seconds": workload.compile_seconds,
                "cold_seconds": cold,
            }
        )
        for line in sys.stdin:
            repetitions = max(1, math.ceil(json.loads(line)["seconds"] / estimate))
            estimate = _time(workload, repetitions)
            log({"seconds": estimate / workload.steps, "repetitions": repetitions})
    except Exception as error:  # the parent shows it in the table
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        log({"error": f"{type(error).__name__}: {lines[0]}"})
        return 1
    return 0


def _own_stdout() -> TextIO:
    """The real stdout; what libraries print from now on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _build(case: cases.Case, task: str, side: cases.Side, device: str) -> Workload:
    # Each process has only one of the two libraries at work.
    module = "torch_side" if side.family == "PyTorch" else "jax_side"
    return getattr(importlib.import_module(f"benchmarks.{module}"), task)(case, side, device)


def _time(workload: Workload, repetitions: int) -> float:
    start = time.perf_counter()
    for _ in range(repetitions):
        workload.step()
    workload.wait()
    return (time.perf_counter() - start) / repetitions


def _warm_up(workload: Workload) -> float:
    """Seconds of one warm repetition, roughly."""
    seconds = 0.0
    for _ in range(WARM_UP):
        seconds = _time(workload, 1)
        if seconds > SLOW:
            break
    return seconds


if __name__ == "__main__":
    sys.exit(main())
