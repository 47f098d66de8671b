"""What is measured of diffjax alone, each in a fresh process that prints one JSON object.

python -m benchmarks.probes NAME [ARGUMENT]
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import cases

SET_SIZE = 60_000  # images, Fashion-MNIST's training set
SECONDS = 2.0
ROUNDS = 5


def imports(module: str) -> dict[str, float]:
    """Seconds of one import."""
    start = time.perf_counter()
    __import__(module)
    return {"seconds": time.perf_counter() - start}


def train(folder: str) -> dict[str, float]:
    """Trains the demo as the command line does, on synthetic images; the caller ends it."""
    from benchmarks.jax_side import synthetic_data
    from diffjax import main

    case = cases.load("demo", "cpu")
    with synthetic_data(case, size=SET_SIZE):
        main.run(case.config, Path(folder))
    return {}


def pipeline(_: str) -> dict[str, float]:
    """Images a second from a set in memory, through the prefetcher onto the device."""
    from diffjax import data
    from diffjax.distributed.strategy import DataParallel
    from diffjax.training.prefetch import Prefetcher

    case = cases.load("demo", "cpu")
    pool = cases.examples(case, SET_SIZE)
    source = data.ArraySource(pool["image"], pool["label"])
    batches = data.batches(source, batch_size=case.batch_size, seed=0)
    prefetcher = Prefetcher(batches, DataParallel().shard_batch)
    next(prefetcher)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        next(prefetcher)
        count += case.batch_size
    rate = count / (time.perf_counter() - start)
    prefetcher.close()
    return {"images_per_second": rate}


def sampler(_: str) -> dict[str, float]:
    """Time of a jitted sampler over that of its network evaluations, less 1; the demo's network."""
    import jax
    import jax.numpy as jnp

    from benchmarks.jax_side import setup_of
    from diffjax.inference.sampling import apply_network

    case = cases.load("demo", "cpu")
    side = cases.Side("diffjax", case.config.model.kernels, case.config.model.dtype)
    setup = setup_of(case, side)
    params = setup.init_state().params
    indices = jnp.arange(case.sample_size)
    labels = setup.generator.conditions.batch(0, case.sample_size)
    whole = jax.jit(setup.generator.function())
    x_t = jnp.zeros((case.sample_size, *case.image_shape))

    @jax.jit
    def once(params: Any, x_t: Any) -> Any:
        denoise = setup.diffusion.denoiser(apply_network(setup.network, params))
        return denoise(x_t, jnp.asarray(500), labels).x_0

    def evaluations() -> Any:
        for _ in range(cases.SAMPLING_STEPS):
            result = once(params, x_t)
        return result

    def seconds(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        jax.block_until_ready(work())
        return time.perf_counter() - start

    def sampling() -> Any:
        return whole(params, indices, labels).x_0

    seconds(sampling), seconds(evaluations)
    overheads = [seconds(sampling) / seconds(evaluations) - 1 for _ in range(ROUNDS)]
    return {"overhead": statistics.median(overheads)}


def memory(steps: str) -> dict[str, float]:
    """Peak memory of a process that samples a batch from a small network, in MiB."""
    from benchmarks.jax_side import synthetic_data
    from diffjax.experiment.diffusion import resolve

    case = cases.load("smoke", "cpu")
    case.config.sample.update(sampler="ddim", steps=int(steps), batch_size=case.batch_size)
    with synthetic_data(case, size=case.batch_size):
        setup = resolve(case.config)
    setup.generator(setup.init_state().params, start=0, count=case.batch_size)
    return {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}  # KiB on Linux


PROBES: dict[str, Callable[[str], dict[str, float]]] = {
    "imports": imports,
    "train": train,
    "pipeline": pipeline,
    "sampler": sampler,
    "memory": memory,
}

if __name__ == "__main__":
    print(json.dumps(PROBES[sys.argv[1]]("".join(sys.argv[2:]))))
