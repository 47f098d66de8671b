"""Part "memory": what a step takes on the device, by XLA's report and by --mode=plan's forecast."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from benchmarks import cases
from benchmarks.gpu.part import Part
from benchmarks.jax_side import setup_of
from diffjax.distributed.strategy import DataParallel
from diffjax.experiment.plan import Plan, plan

CASES = ("28x28", "fashion", "cifar10", "cifar10-512")  # by size: the device's peak only grows
MIB = 2.0**20


def run(part: Part) -> None:
    """All cases, with the forecasts computed on the CPU meanwhile."""
    names = ("smoke",) if part.dry else CASES
    side = cases.Side("diffjax", "xla", "float32" if part.dry else "bfloat16")
    with ThreadPoolExecutor() as pool:
        forecasts = {
            name: pool.submit(_forecast, cases.load(name, part.device), side) for name in names
        }
        for name in names:
            with part.attempt(name):
                _measure(part, cases.load(name, part.device), side, forecasts[name])


def _forecast(case: cases.Case, side: cases.Side) -> Plan:
    config = setup_of(case, side).config.copy_and_resolve_references().unlock()
    config.parallel.devices = 1
    return plan(config.lock())


def _measure(part: Part, case: cases.Case, side: cases.Side, forecast: "Future[Plan]") -> None:
    setup = setup_of(case, side)
    strategy = DataParallel()
    state = strategy.init_state(setup)
    batch = strategy.shard_batch(cases.batches(case)[0])
    compiled = strategy.compile(setup.train_step()).lower(state, batch).compile()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    report: Any = compiled.memory_analysis()
    for _ in range(2):
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    planned = forecast.result(timeout=max(part.left() - 1, 1))
    state_plan = (
        planned.of_parameters + planned.of_optimizer + planned.of_averages + planned.of_others
    )
    part.record(
        case.name, batch=case.batch_size, state_mib=size / MIB, planned_state_mib=state_plan / MIB,
        temporary_mib=report.temp_size_in_bytes / MIB,
        planned_temporary_mib=(planned.of_temporaries or 0) / MIB,
        peak_mib=peak and peak / MIB,
    )  # fmt: skip
