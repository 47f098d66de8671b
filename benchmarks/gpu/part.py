"""What a part of the benchmark is given: where to write, until when, and whether it is a dry run.

A part is a module with `run(part)`, in a process of its own: python -m benchmarks.gpu.part NAME
"""

import argparse
import contextlib
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.gpu import results

# Part -> its share of the time: seconds of nine minutes, and of a dry run's.
SHARES = {"smoke": 80, "steps": 145, "sampling": 40, "training": 245, "memory": 30}
DRY_SHARES = {"smoke": 240, "steps": 120, "sampling": 40, "training": 100, "memory": 40}


class Part:
    """One part's way to the results.

    Attributes:
      name: one of SHARES.
      out: the folder of results and pictures.
      work: a folder for the part's runs.
      dry: whether shapes are tiny, on a CPU, to see that everything runs.
      bundle: the folder that `make gpu-bundle` fills.
    """

    def __init__(self, name: str, out: Path, *, seconds: float, dry: bool, bundle: Path) -> None:
        self.name, self.out, self.dry, self.bundle = name, out, dry, bundle
        self.work = out / "work" / name
        self._end = time.monotonic() + seconds

    @property
    def device(self) -> str:
        """ "cpu" for a dry run, else "gpu"."""
        return "cpu" if self.dry else "gpu"

    def left(self) -> float:
        """Seconds until the part is stopped."""
        return self._end - time.monotonic()

    def record(self, what: str, **figures: Any) -> None:
        """Adds a row to the results; it is on disk when this returns."""
        row = {"part": self.name, "what": what, **figures}
        results.append(self.out, row)
        print(*(f"{k}={v}" for k, v in row.items()), flush=True)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """An error within it becomes a row, and the part goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            self.record(what, failed=f"{type(error).__name__}: {lines[0]}"[:300])


def arguments(part: Part, seconds: float) -> list[str]:
    """The command line of the process of a part."""
    return [
        sys.executable, "-m", "benchmarks.gpu.part", part.name, f"--out={part.out}",
        f"--seconds={seconds}", f"--bundle={part.bundle}", *(["--dry"] if part.dry else []),
    ]  # fmt: skip


@contextlib.contextmanager
def short_classifier() -> Iterator[None]:
    """Within it a classifier of the Fréchet distance is trained for a few steps."""
    from diffjax.evaluation import classifier_features

    recipe = classifier_features.Recipe(steps=20)
    with mock.patch.object(classifier_features, "Recipe", lambda: recipe):
        yield


def main() -> int:
    """Runs one part; its rows are its output."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.part")
    parser.add_argument("name", choices=SHARES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    part = Part(
        options.name, options.out, seconds=options.seconds, dry=options.dry, bundle=options.bundle
    )
    part.work.mkdir(parents=True, exist_ok=True)
    # Caches of its own: compiled programs are cold, and a dry run's classifier is nobody else's.
    os.environ["XDG_CACHE_HOME"] = str((options.out / "work" / "cache").resolve())
    with short_classifier() if part.dry else contextlib.nullcontext():
        importlib.import_module(f"benchmarks.gpu.{part.name}").run(part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
