"""The command; see the package."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import benchmarks.stable_diffusion as about
from benchmarks.rounds import HUGE_PAGES
from benchmarks.stable_diffusion import folder as random_folder
from diffjax.files import expanded

TASKS = ("evaluate", "load", "image")
DTYPES = ("float32", "bfloat16")


class Side(NamedTuple):
    """Who computes, how, and in which type."""

    family: str
    mode: str
    dtype: str


EVALUATED = tuple(
    Side(family, mode, dtype)
    for dtype in DTYPES
    for family, mode in (
        ("diffjax", "auto"), ("diffjax", "xla"), ("diffusers", "eager"), ("diffusers", "compile"),
    )
)  # fmt: skip
WHOLE = tuple(
    Side(family, mode, dtype)
    for dtype in DTYPES
    for family, mode in (("diffjax", "auto"), ("diffusers", "eager"))
)


class Process:
    """A side at work."""

    def __init__(
        self, task: str, side: Side, folder: Path, *, cache: str = "", batch: int = 1
    ) -> None:
        environment = {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES}
        if cache:
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stable_diffusion.sides", task, *side, str(folder),
             str(batch)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def answer(self) -> dict[str, float]:
        """The next line.

        Raises:
          SystemExit: the process has ended without one; its error is on stderr.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with code {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def again(self) -> float:
        """Seconds of one more evaluation."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self.answer()["seconds"]

    def end(self) -> None:
        """Ends it."""
        self._process.communicate()


def evaluations(folder: Path, sides: Sequence[Side], rounds: int, batch: int) -> None:
    """Prints a table of seconds of one evaluation, all sides of a type in turn."""
    print("| | seconds (range) | of diffusers' best |\n| --- | --- | --- |", flush=True)
    for dtype in dict.fromkeys(side.dtype for side in sides):
        names = [side for side in sides if side.dtype == dtype]
        processes = {side: Process("evaluate", side, folder, batch=batch) for side in names}
        for process in processes.values():
            process.answer()
        seconds: dict[Side, list[float]] = {side: [] for side in names}
        for _ in range(rounds):
            for side, process in processes.items():
                seconds[side].append(process.again())
        for process in processes.values():
            process.end()
        theirs = [statistics.median(s) for side, s in seconds.items() if side.family != "diffjax"]
        for side, found in seconds.items():
            median = statistics.median(found)
            ratio = f"{median / min(theirs):.2f}" if theirs else "-"
            spread = f"{min(found):.2f} to {max(found):.2f}"
            print(f"| {' '.join(side)} | {median:.2f} ({spread}) | {ratio} |", flush=True)


def loads(folder: Path, sides: Sequence[Side]) -> None:
    """Prints a table of seconds and memory of loading."""
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 2**20
    print("| | load | memory at most, without imports, over the weights |\n| --- | --- | --- |")
    for side in sides:
        process = Process("load", side, folder)
        found = process.answer()
        process.end()
        weights = size / (1 if side.dtype == "float32" else 2)
        ratio = (found["peak"] - found["before"]) / weights
        print(f"| {' '.join(side)} | {found['load']:.1f} s | {ratio:.2f} |", flush=True)


def images(folder: Path, sides: Sequence[Side]) -> None:
    """Prints a table of seconds to an image of 512x512 in 20 steps, from nothing and cached."""
    print("| | first image | with a filled cache | next image |\n| --- | --- | --- | --- |")
    for side in sides:
        found: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as cache:
            for _ in range(2 if side.family == "diffjax" else 1):
                process = Process("image", side, folder, cache=cache)
                found.append(process.answer())
                process.end()
        cached = f"{found[1]['first']:.0f} s" if len(found) > 1 else "-"
        first, after = (f"{seconds:.0f} s" for seconds in (found[0]["first"], found[-1]["next"]))
        print(f"| {' '.join(side)} | {first} | {cached} | {after} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stable_diffusion",
        description=(about.__doc__ or "").splitlines()[0],
    )
    parser.add_argument("--folder", required=True, help="written if there is none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2, help="of an evaluation; 2 is a guided step")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--modes", nargs="+", default=["auto", "xla", "eager", "compile"])
    given = parser.parse_args(arguments)
    folder = expanded(given.folder)
    if not folder.exists():
        print(f"writing {folder}", flush=True)
        random_folder.write(folder)

    def wanted(sides: Sequence[Side]) -> list[Side]:
        return [side for side in sides if side.dtype in given.dtypes and side.mode in given.modes]

    if "evaluate" in given.tasks:
        evaluations(folder, wanted(EVALUATED), given.rounds, given.batch)
    if "load" in given.tasks:
        loads(folder, wanted(WHOLE))
    if "image" in given.tasks:
        images(folder, wanted(WHOLE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
