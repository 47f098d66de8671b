"""How long a trained model takes to load, and its memory: python -m benchmarks.loading WORKDIR

Each round is a process of its own: the imports, `diffjax.load`, the peak memory of the process.
"""

import argparse
import json
import statistics
import subprocess
import sys

ROUNDS = 3
CODE = """
import json, resource, sys, time
start = time.perf_counter()
import diffjax
imported = time.perf_counter()
diffjax.load(sys.argv[1])
done = time.perf_counter()
mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
print(json.dumps({"import": imported - start, "load": done - imported, "mib": mib}))
"""


def main(arguments: list[str]) -> None:
    """Prints the median of each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir")
    options = parser.parse_args(arguments)
    rounds = [_round(options.workdir) for _ in range(ROUNDS)]
    for name, unit in (("import", "s"), ("load", "s"), ("mib", "MiB at most")):
        print(f"{name:8} {statistics.median(r[name] for r in rounds):.2f} {unit}")


def _round(workdir: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, workdir], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
