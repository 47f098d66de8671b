"""Measures one GPU in a few minutes: smoke test, speed of training and sampling, a trained model.

Each part has its share of the minutes and a process of its own. Its figures are in
DIR/results.jsonl and DIR/results.md as soon as they are known, so a run that is cut loses what it
was about to measure.
benchmarks/gpu.md says how to use it on a machine without a network.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import cases, machine
from benchmarks.gpu import results
from benchmarks.gpu.part import DRY_SHARES, SHARES, Part, arguments

# A dry run's programs are compiled for one use.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
GRACE = 5.0  # seconds between a part's end and its death


def parse(command_line: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of results and pictures")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts (default: 9)")
    parser.add_argument(
        "--only", nargs="+", choices=SHARES, default=list(SHARES), metavar="PART",
        help=f"which of {', '.join(SHARES)}; they share the minutes",
    )  # fmt: skip
    parser.add_argument(
        "--dry", action="store_true", help="tiny shapes on the CPU, to see that everything runs"
    )
    parser.add_argument(
        "--bundle", type=Path, default=cases.ROOT / "bundle",
        help="what `make gpu-bundle` has collected (default: bundle/)",
    )  # fmt: skip
    return parser.parse_args(command_line)


def run(options: argparse.Namespace) -> int:
    """Runs the parts in turn; the exit code is 1 if one of them failed."""
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    end = time.monotonic() + options.minutes * 60
    device = "cpu" if options.dry else "gpu"
    results.append(out, {"part": "machine", "what": machine.describe(device)})
    known = DRY_SHARES if options.dry else SHARES
    shares = {name: share for name, share in known.items() if name in options.only}
    failed = False
    for name in shares:
        # What earlier parts left over is shared by those that follow.
        following = sum(list(shares.values())[list(shares).index(name) :])
        seconds = (end - time.monotonic()) * shares[name] / following
        part = Part(name, out, seconds=seconds, dry=options.dry, bundle=options.bundle.resolve())
        print(f"{name}: {seconds:.0f} s", flush=True)
        started = time.monotonic()
        code = _run_part(part, seconds)
        took = time.monotonic() - started
        failed |= code != 0
        ending = "ended" if code == 0 else "stopped" if code is None else f"failed with code {code}"
        results.append(out, {"part": "parts", "what": name, "ending": ending, "seconds": took})
    print(f"results: {out / results.PAGE}")
    return int(failed)


def _run_part(part: Part, seconds: float) -> int | None:
    """The exit code of a part's process, or None if it was stopped at its end."""
    environment = dict(os.environ)
    if part.dry:
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "XLA_FLAGS": QUICKLY}
    with open(part.out / f"{part.name}.log", "w") as log:
        process = subprocess.Popen(
            arguments(part, seconds), stdout=log, stderr=subprocess.STDOUT, cwd=cases.ROOT,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(seconds + GRACE)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Ends a part and the processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> int:
    """Runs the command line."""
    options = parse(sys.argv[1:])
    if options.minutes <= 0:
        print(f"error: --minutes {options.minutes}: expected more than 0", file=sys.stderr)
        return 2
    if options.out.exists() and not options.out.is_dir():
        print(f"error: --out {options.out}: expected a folder, found a file", file=sys.stderr)
        return 2
    if not options.dry and machine.default_device() != "gpu":
        print("error: JAX finds no GPU: --dry runs every part on the CPU", file=sys.stderr)
        return 2
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
