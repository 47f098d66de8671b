"""Training and sampling as `python -m diffjax.main` does them, on one device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import cases, feeds, stock
from benchmarks.cases import Case, Side
from benchmarks.variants import VARIANTS
from benchmarks.workload import Workload
from diffjax import data
from diffjax.distributed.strategy import DataParallel
from diffjax.experiment import network as networks
from diffjax.experiment.diffusion import Experiment, resolve
from diffjax.experiment.schema import check
from diffjax.models.linen import from_linen
from diffjax.models.ops import Ops


@contextmanager
def synthetic_data(case: Case, *, size: int) -> Iterator[None]:
    """Within it every data set is `size` synthetic images of the case's shape."""
    pool = cases.examples(case, size)
    names = tuple(str(i) for i in range(cases.NUM_CLASSES))
    source = data.ArraySource(pool["image"], pool["label"], class_names=names)
    with (
        mock.patch.object(data, "load", lambda *_, **__: source),
        mock.patch.object(data, "has_split", lambda *_, **__: True),
    ):
        yield


def setup_of(case: Case, side: Side) -> Experiment:
    """The case's config, resolved as the command line does it."""
    config = cases.config_of(case, side)
    check(config)
    with synthetic_data(case, size=cases.BATCHES * case.batch_size):
        setup = resolve(config)
    ops = stock.OPS if side.family == "stock" else VARIANTS[side.variant].ops
    return setup if ops is None else with_ops(setup, ops)


def with_ops(setup: Experiment, ops: Ops) -> Experiment:
    """The experiment with other operations in its network."""
    network: Any = setup.network
    return setup.with_network(from_linen(network.module.clone(ops=ops)))


def train(case: Case, side: Side, device: str) -> Workload:
    """The config's train step, with a batch put on the device for each."""
    del device  # JAX_PLATFORMS has chosen
    setup = setup_of(case, side)
    variant = VARIANTS[side.variant]
    strategy = DataParallel()
    state = strategy.init_state(setup)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    feed = feeds.FEEDS[variant.feed](cases.batches(case), strategy.shard_batch)
    fed = feed.around(setup.train_step())
    train_step = strategy.compile(fed) if variant.donate else jax.jit(fed)
    lowered = train_step.lower(state, feed.batch(0))
    # A scan's body is counted once.
    flops = (lowered.cost_analysis() or {}).get("flops")
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start
    metrics: Any = None
    done = 0

    def step() -> None:
        nonlocal state, metrics, done
        state, metrics = compiled(state, feed.batch(done))
        done += 1

    def wait() -> None:
        jax.block_until_ready((state, metrics))

    return Workload(
        step, wait, parameters, _forward_flops(setup, side), _device(setup, side),
        steps=feed.steps, step_flops=flops, compile_seconds=compile_seconds,
    )  # fmt: skip


def sample(case: Case, side: Side, device: str) -> Workload:
    """A batch from the config's generator, from noise to uint8 on the host."""
    del device
    setup = setup_of(case, side)
    params = setup.init_state().params
    parameters = sum(x.size for x in jax.tree.leaves(params))

    def step() -> None:
        setup.generator(params, start=0, count=case.sample_size)

    return Workload(
        step, lambda: None, parameters, _forward_flops(setup, side), _device(setup, side)
    )


def _device(setup: Experiment, side: Side) -> str:
    kind = jax.local_devices()[0].device_kind
    if side.family == "stock":
        return kind
    return f"{kind}, {networks.kernels_of(setup.config).line}"


def _forward_flops(setup: Experiment, side: Side) -> float | None:
    """Of one pass of one image, counted before XLA changes the program."""
    if side.mode == "auto":
        return None  # calls to other libraries are not counted
    x = jnp.zeros((1, *setup.source.image_shape))
    t = jnp.zeros(1)
    params = jax.eval_shape(setup.network.init, jax.random.key(0), x, t, None)
    analysis = jax.jit(setup.network.apply).lower(params, x, t, None).cost_analysis()
    return float(analysis["flops"]) if analysis else None
