"""diffjax alone: how long it takes to start, and what it costs besides its network."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import cases
from benchmarks.report import number
from benchmarks.rounds import environment
from diffjax.files import cache_folder

IMPORTS = 5
STARTS = 3


def measure(
    device: str, *, training_rate: float | None, log: Callable[[str], None]
) -> list[tuple[str, str]]:
    """(what, figure) pairs.

    Args:
      device: "cpu" or "gpu".
      training_rate: the demo's, images a second, to set the data pipeline against; None where it
        was not measured.
      say: where progress goes.
    """
    rows = []

    def row(what: str, figure: Callable[[], str]) -> None:
        log(what)
        try:
            rows.append((what, figure()))
        except _Failed as error:
            rows.append((what, f"failed: {error}"))

    def pipeline() -> str:
        rate = _probe(device, "pipeline")["images_per_second"]
        times = f", {number(rate / training_rate)} times the training's" if training_rate else ""
        return f"{number(rate)} images/s{times}"

    for module in ("diffjax", "diffjax.main"):
        row(
            f"`import {module}`, fresh process: best of {IMPORTS} (median)",
            lambda module=module: _imports(device, module),  # type: ignore[misc]
        )
    with tempfile.TemporaryDirectory() as cache:
        row(
            f"demo, process start to first loss, empty compilation cache: median of {STARTS}",
            lambda: _starts(device, None),
        )
        row(
            f"the same with a filled cache: median of {STARTS}",
            lambda: _starts(device, Path(cache)),
        )
    row("data pipeline alone, demo's batches from memory", pipeline)
    row(
        f"sampler over its {cases.SAMPLING_STEPS} network evaluations, demo: overhead",
        lambda: f"{_probe(device, 'sampler')['overhead']:+.1%}",
    )
    row(
        "peak memory of sampling in 10 and in 1,000 steps, small network",
        lambda: " and ".join(
            f"{_probe(device, 'memory', n)['mib']:.0f} MiB" for n in ("10", "1000")
        ),
    )
    return rows


class _Failed(Exception):
    """A probe ended without a figure."""


def _command(probe: str, argument: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.probes", probe, argument]


def _probe(device: str, name: str, argument: str = "") -> dict[str, float]:
    done = subprocess.run(
        _command(name, argument), cwd=cases.ROOT, env=environment(device),
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise _Failed((done.stderr.strip().splitlines() or ["nothing on stderr"])[-1])
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _imports(device: str, module: str) -> str:
    times = [_probe(device, "imports", module)["seconds"] for _ in range(IMPORTS)]
    return f"{min(times):.2f} s ({statistics.median(times):.2f} s)"


def _starts(device: str, cache: Path | None) -> str:
    """With a folder, it is filled first and used every time; without, each start has a new one."""
    if cache is not None:
        _first_loss(device, cache)
    times = []
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as empty:
            times.append(_first_loss(device, cache or Path(empty)))
    return f"{statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f})"


def _first_loss(device: str, cache: Path) -> float:
    """Seconds from the start of a process to the first line that training logs."""
    variables = environment(device) | {"XDG_CACHE_HOME": str(cache)}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would be used instead
    kept = cache / "diffjax" / "accelerator"
    if not kept.exists():  # what was built once is not built at a start
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.symlink_to(cache_folder() / "accelerator")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        metrics = Path(folder) / "run" / "metrics.jsonl"
        start = time.perf_counter()
        process = subprocess.Popen(
            _command("train", os.fspath(metrics.parent)),
            cwd=cases.ROOT, env=variables, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    log.seek(0)
                    raise _Failed((log.read().strip().splitlines() or ["no output"])[-1])
                time.sleep(0.02)
            return time.perf_counter() - start
        finally:
            process.kill()
            process.wait()
