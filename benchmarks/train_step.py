"""Seconds a training step and images a second, for any config, on this machine.

    python benchmarks/train_step.py --config=experiments/fashion_mnist.py:quick

Takes the flags of diffjax.main. Prints a Markdown table of one row: the median over STEPS steps,
their range, and the time of the first one, which compiles.
"""

import platform
import statistics
import sys
import time
from typing import Any

import jax

from diffjax import data, flags
from diffjax.training.config import check
from diffjax.training.experiment import resolve
from diffjax.training.parallel import AXIS, DataParallel

STEPS = 30


def measure(config: Any) -> dict[str, object]:
    """Compiles and times the train step of a config, with batches from its data pipeline."""
    check(config)
    setup = resolve(config)
    parallel = DataParallel(config.train.batch_size)
    state = setup.init_state()
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    step = parallel.compile(setup.train_step(axis_name=AXIS))
    state = parallel.replicate(state)
    batches = data.batches(setup.source, batch_size=config.train.batch_size, seed=config.seed)

    times = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        state, metrics = step(state, parallel.shard(next(batches)))
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    compiling, times = times[0], times[1:]
    median = statistics.median(times)
    return {
        "parameters": f"{parameters / 1e6:.2f} M",
        "batch": config.train.batch_size,
        "s/step (range)": f"{median:.3f} ({min(times):.3f} to {max(times):.3f})",
        "images/s": round(config.train.batch_size / median),
        "first step, s": f"{compiling:.1f}",
        "devices": f"{len(parallel.devices)} x {parallel.devices[0].device_kind}",
        "versions": f"jax {jax.__version__}, Python {platform.python_version()}",
    }


def main() -> None:
    """Prints the row of the config that the command line names."""
    row = measure(flags.parse(sys.argv[1:]).config)
    print("| " + " | ".join(row) + " |")
    print("|" + " --- |" * len(row))
    print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
