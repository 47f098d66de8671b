"""The train steps of few-step objectives against flow matching's: the same network, one process.

    python -m benchmarks.objectives --config=experiments/fashion_mnist_mean_flow.py:quick

Whole train steps, with optimizer and averages, on the same batch and without a teacher; the
objectives take turns in each round. The table has the median time of a step, and its ratio to the
first row's.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.program import exit_code
from diffjax import flags
from diffjax.experiment import diffusion
from diffjax.experiment.network import kernels_of
from diffjax.experiment.process import diffusion as process_of

# name -> changes of the config
FLOW = {"diffusion.objective": "squared_error", "diffusion.time_sampling": "uniform"}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "flow matching": FLOW,
    "mean_flow": {"diffusion.objective": "mean_flow"},
    "mean_flow, predicted tangent": {"diffusion.objective": "mean_flow(tangent='predicted')"},
    "mean_flow, guided": {"diffusion.objective": "mean_flow(scale=1.5)"},
    "shortcut": {"diffusion.objective": "shortcut"},
    "consistency": {
        "diffusion.objective": "consistency", "diffusion.parametrisation": "velocity",
    },
    "continuous_consistency": {
        "diffusion.objective": "continuous_consistency", "diffusion.parametrisation": "velocity",
    },
}  # fmt: skip


def step_of(config: Any, changes: dict[str, Any]) -> tuple[Any, list[Any]]:
    """A compiled train step, and [its state], which each call replaces."""
    changed = config.copy_and_resolve_references()
    denoises = changes.get("diffusion.parametrisation") is not None
    changed.update_from_flattened_dict(changes)
    if denoises:  # a denoiser has no flow map
        changed.sample.update(sampler="ddim", threshold="clip")
    setup = diffusion.resolve(changed)
    batch = next(setup.batches())
    step = jax.jit(setup.train_step())
    state = [setup.init_state()]

    def run() -> None:
        state[0], metrics = step(state[0], batch)
        jax.block_until_ready(metrics)

    return run, state


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="of a flow map, FILE[:variant]")
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args(arguments)
    config, *_ = flags.parse([f"--config={given.config}"])
    if not process_of(config).parametrisation.spans:
        parser.error(
            f"--config={given.config} trains no flow map: its parametrisation has no spans"
        )
    print(f"{kernels_of(config).line}; {config.train.batch_size} examples a step")
    runs = {}
    for name in given.only:
        runs[name] = step_of(config, OBJECTIVES[name])[0]
        start = time.perf_counter()
        runs[name]()
        print(f"{name}: compiled in {time.perf_counter() - start:.0f} s", flush=True)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(given.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    first = np.asarray(times[given.only[0]])
    print("\n| objective | ms a step | ratio |\n| --- | --- | --- |")
    for name, each in times.items():
        ratio = np.median(np.asarray(each) / first)
        print(f"| {name} | {1e3 * np.median(each):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    sys.exit(exit_code(main))
