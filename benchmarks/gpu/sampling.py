"""Part "sampling": images a second of DDIM by batch, and what its loop costs."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import cases
from benchmarks.gpu.part import Part
from benchmarks.jax_side import setup_of
from diffjax.inference.sampling import apply_network

STEPS = (50, 1)
BATCHES = (256, 1, 1024, 64, 8)  # in this order, as far as the time goes
SECONDS = 1.0


class _Programs(NamedTuple):
    """Compiled for one batch size; each is called without arguments."""

    samplers: dict[int, Callable[[], Any]]
    network: Callable[[], Any]
    compile_seconds: dict[int, float]


def run(part: Part) -> None:
    """The default Fashion-MNIST model by each batch size, from noise to x_0."""
    side = cases.Side("diffjax", "xla", "float32" if part.dry else "bfloat16")
    case = cases.load("smoke" if part.dry else "fashion", part.device)
    base = setup_of(case, side)
    setups = {count: _with_steps(base, count) for count in ((3, 1) if part.dry else STEPS)}
    params = base.init_state().params
    for batch in (8, 1) if part.dry else BATCHES:
        if part.left() < 4 * SECONDS:
            part.record(f"batch {batch}", failed="no time was left")
            continue
        with part.attempt(f"batch {batch}"):
            _time(part, _compile(setups, params, batch), batch)


def _with_steps(base: Any, count: int) -> Any:
    config = base.config.copy_and_resolve_references().unlock()
    config.sample.steps = count
    setup = base._replace(config=config.lock())
    return setup._replace(generator=setup.model.generator())


def _compile(setups: dict[int, Any], params: Any, batch: int) -> _Programs:
    """All programs of a batch size, compiled side by side."""
    setup = next(iter(setups.values()))
    indices = jnp.arange(batch)
    labels = setup.generator.conditions.batch(0, batch)
    x_t = jnp.zeros((batch, *setup.space.shape))

    def evaluate(params: Any, x_t: Any, labels: Any) -> Any:
        denoise = setup.diffusion.denoiser(apply_network(setup.network, params))
        return denoise(x_t, jnp.asarray(500), labels).x_0

    def timed(lowered: Any) -> tuple[Any, float]:
        start = time.perf_counter()
        return lowered.compile(), time.perf_counter() - start

    lowered = [
        jax.jit(one.generator.function()).lower(params, indices, labels) for one in setups.values()
    ]
    lowered.append(jax.jit(evaluate).lower(params, x_t, labels))
    with ThreadPoolExecutor() as pool:
        *samplers, (network, _) = pool.map(timed, lowered)
    return _Programs(
        {
            count: partial(program, params, indices, labels)
            for count, (program, _) in zip(setups, samplers, strict=True)
        },
        partial(network, params, x_t, labels),
        {count: seconds for count, (_, seconds) in zip(setups, samplers, strict=True)},
    )


def _time(part: Part, programs: _Programs, batch: int) -> None:
    evaluation = _seconds(programs.network)
    for count, sampler in programs.samplers.items():
        seconds = _seconds(sampler)
        part.record(
            f"DDIM, {count} steps, batch {batch}", images_per_second=batch / seconds,
            milliseconds=seconds * 1e3, milliseconds_of_an_evaluation=evaluation * 1e3,
            loop_over_evaluations=seconds / (count * evaluation) - 1,
            compile_seconds=programs.compile_seconds[count],
        )  # fmt: skip


def _seconds(work: Callable[[], Any]) -> float:
    """Of one call, as the median of those that SECONDS has time for, three at least."""
    jax.block_until_ready(work())
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS:
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return statistics.median(times)
