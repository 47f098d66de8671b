"""The memory and FLOPs of training per device, without the devices and without training.

XLA compiles the config's train step ahead of time, from shapes, in a process whose CPU simulates
`config.parallel.devices` devices. The size of the state is exact. Temporary memory is the size of
the buffers that XLA's CPU compiler allocates. Other backends fuse, order and lay out differently,
and bfloat16 may be computed in float32 on the CPU, so it shows how memory scales with the model,
the batch and the mesh, not whether training fits on a device.
"""

import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax.checkpoints.run_config import from_json
from diffjax.errors import UserError
from diffjax.experiment import diffusion, kinds, model_folder, plan_sampling, strategies
from diffjax.experiment.schema import check, is_diffusion, section
from diffjax.models.linen import from_linen

# LLVM's optimisations do not change the buffers.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# XLA's CPU compiler removes the barriers around computations that config.model.remat repeats,
# merges them with the originals and so keeps their results. A plan assumes kept barriers.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


class Plan(NamedTuple):
    """Sizes of a training; the `of_*` are in bytes per device.

    Attributes:
      strategy: config.parallel.strategy.
      devices: number of devices.
      mesh: description of their arrangement.
      batch_size: over all devices.
      accumulate: micro-batches per batch.
      parameters: number of parameters.
      of_parameters: the parameters, float32.
      of_optimizer: the optimizer's moments.
      of_averages: the EMA and the averages of config.train.ema_snapshots.
      of_others: the rest of the state.
      of_folder: text encoders and first stage of config.model.folder, which are frozen.
      of_batch: the device's share of a batch.
      of_temporaries: activations, gradients and gathered arrays; None if nothing was compiled.
      flops: of a step over all devices, counted by XLA before it optimises.
    """

    strategy: str
    devices: int
    mesh: str
    batch_size: int
    accumulate: int
    parameters: int
    of_parameters: int
    of_optimizer: int
    of_averages: int
    of_others: int
    of_folder: int
    of_batch: int
    of_temporaries: int | None
    flops: float


def plan(config: Any) -> Any:
    """The plan of a config, computed in a separate process; nothing is written to a workdir.

    It is a `Plan`, or a `SamplingPlan` of a folder without data.

    Args:
      config: checked. `config.parallel.devices` is the number of devices, 0 for the local ones;
        `config.parallel.compile` whether to compile, which `of_temporaries` needs and which takes
        about as long as starting a training.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    devices = config.parallel.devices or jax.local_device_count()
    flags = f"{QUICKLY} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-m", "diffjax.experiment.plan", json.dumps(sys.path)],
        input=json.dumps(config.to_dict()),
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        if done.returncode == 2:
            raise UserError(lines[-1])
        raise UserError(f"--mode=plan ended with exit code {done.returncode}: {lines[-1]}")
    kind: Any = plan_sampling.SamplingPlan if plan_sampling.is_of_sampling(config) else Plan
    return kind(**json.loads(done.stdout.splitlines()[-1]))


def as_text(plan: Plan | plan_sampling.SamplingPlan) -> str:
    """A plan as text for the user."""
    if isinstance(plan, plan_sampling.SamplingPlan):
        return plan_sampling.as_text(plan)
    micro = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    state = plan.of_parameters + plan.of_optimizer + plan.of_averages + plan.of_others
    state += plan.of_folder
    rows = [
        ("parameters", plan.of_parameters),
        ("optimizer", plan.of_optimizer),
        ("averages", plan.of_averages),
        ("the rest of the state", plan.of_others),
        *([("texts and first stage", plan.of_folder)] if plan.of_folder else []),
        ("batch", plan.of_batch),
    ]
    if plan.of_temporaries is not None:
        rows.append(("temporary", plan.of_temporaries))
        rows.append(("total", state + plan.of_batch + plan.of_temporaries))
    share = plan.flops / plan.devices
    return "\n".join([
        f"{plan.strategy} on {plan.devices} devices ({plan.mesh}), a batch of {plan.batch_size}"
        f"{micro}, {plan.parameters / 1e6:.2f} M parameters",
        "memory per device, in MiB:",
        *(f"  {name:<22}{size / 2**20:12.2f}" for name, size in rows),
        f"a step takes {plan.flops:.3g} FLOPs, {share:.3g} per device",
        plan_sampling.about_temporary(is_known=plan.of_temporaries is not None),
    ])  # fmt: skip


def plan_here(config: Any) -> Plan:
    """The plan for this process's devices."""
    strategy = strategies.strategy(config)
    setup = _resolved(config)
    strategy.check(setup)
    shapes = setup.state_shapes()
    batch = setup.batch_shapes(config.train.batch_size)
    sizes = {
        field: sum(jax.tree.leaves(of))
        for field, of in strategy.bytes_per_device(shapes)._asdict().items()
    }
    known = ("params", "opt_state", "ema_params", "power_emas")
    temporaries = None
    if config.parallel.compile:
        step = strategy.compile(setup.train_step())
        compiled = step.lower(*strategy.abstract_inputs(shapes, batch)).compile(KEEP_BARRIERS)
        temporaries = compiled.memory_analysis().temp_size_in_bytes
    return Plan(
        config.parallel.strategy,
        len(strategy.devices),
        strategy.description,
        config.train.batch_size,
        config.train.get("accumulate", 1),
        sum(x.size for x in jax.tree.leaves(shapes.params)),
        sizes["params"],
        sizes["opt_state"],
        sizes["ema_params"] + sizes["power_emas"],
        sum(size for field, size in sizes.items() if field not in known),
        _of_folder(setup),
        sum(x.size * np.dtype(x.dtype).itemsize for x in batch.values()) // len(strategy.devices),
        temporaries,
        _flops(setup, shapes, batch),
    )


def _resolved(config: Any) -> Any:
    """The resolved config with XLA's kernels, the only ones whose cost XLA can count."""
    if model_folder.is_named(config):
        return diffusion.of_model(plan_sampling.without_weights(config), None)
    config = config.copy_and_resolve_references()
    network = "model" if is_diffusion(config) else section(config)
    if "kernels" in config[network]:  # a user-defined network and a GAN have no such key
        config[network].kernels = "xla"
    return kinds.resolve(config)


def _of_folder(setup: Any) -> int:
    folder = getattr(setup, "folder", None)
    if folder is None:
        return 0
    texts = [part.params for part in folder.texts]
    return plan_sampling.size_of((texts, folder.stage_params.params))


def _flops(setup: Any, shapes: Any, batch: Any) -> float:
    """FLOPs of a step on one device; the step is lowered, not compiled."""
    # XLA counts the body of a loop once.
    if "accumulate" in setup.config.train:
        setup.config.train.accumulate = 1
    module: Any = getattr(getattr(setup, "network", None), "module", None)
    if hasattr(module, "unroll"):
        setup = setup.with_network(from_linen(module.clone(unroll=True)))
    step = jax.jit(setup.train_step())
    counted: Any = step.lower(shapes, batch).cost_analysis()
    return float(counted["flops"])


def _main() -> int:
    try:
        sys.path[:0] = json.loads(sys.argv[1])  # where the user's own code may be
        config = ConfigDict(from_json(json.load(sys.stdin)))
        check(config)
        config = model_folder.settled(config)
        here = plan_sampling.plan_here if plan_sampling.is_of_sampling(config) else plan_here
        print(json.dumps(here(config)._asdict()))
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(_main())
