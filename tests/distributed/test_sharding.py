"""One device, pmap and fsdp make the same numbers; what one wrote, any other goes on from.

What needs eight devices runs in a process of its own, which is this file as a script.
"""

import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.distributed import fsdp, processes
from diffjax.distributed.strategy import check_divides
from diffjax.errors import UserError
from diffjax.experiment import diffusion as experiment
from diffjax.experiment import plan, strategies
from diffjax.experiment import schema as configs
from diffjax.training import loop
from diffjax.training.accumulation import mean_over_micro_batches, micro_batches
from diffjax.training.objective import LossAndGrads

ROOT = Path(__file__).resolve().parents[2]
DEVICES, PARTS, WIDTH = 8, 4, 64
COUNT = 10  # samples, which eight devices can't share evenly
# Sums over devices and micro-batches are in another order; Adam's eps keeps its quotient from
# making more of that where a gradient is next to nothing.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


class Small(nn.Module):
    """The least that has a kernel to cut, and sees time and class."""

    outputs: int = 1

    @nn.compact
    def __call__(self, x, t, cond=None, *, train=False):
        label = jnp.full(len(x), -1) if cond is None else cond.label
        given = nn.Dense(WIDTH)(t[:, None] / 1000) + nn.Embed(11, WIDTH)(label + 1)
        h = nn.silu(nn.Conv(WIDTH, (3, 3))(x) + given[:, None, None])
        h = nn.silu(nn.Conv(WIDTH, (3, 3), name="middle")(h))
        return nn.Conv(self.outputs * x.shape[-1], (3, 3))(h)


def small(config):
    """The config's experiment, around the small network that `tiny` names."""
    return experiment.resolve(config)


def tiny(**parallel):
    """The digits in a few steps."""
    config = runpy.run_path(str(ROOT / "experiments/digits.py"))["get_config"]()
    config = configs.complete(config)
    config.model = {"name": "tests.distributed.test_sharding:Small", "class_conditional": True}
    config.data.flip = True
    config.train.update(
        steps=2, batch_size=32, warmup_steps=0, optimizer="adam(eps=1e-5)", schedule="constant",
        ema_snapshots=(0.1,), eval_every=100, checkpoint_every=100, sample_every=3,
    )  # fmt: skip
    config.sample.update(steps=2, count=10, batch_size=10)
    config.parallel.update(min_size=600, **parallel)
    return config


FSDP = {
    "strategy": "fsdp",
    "fsdp": 4,
    "overrides": (("Embed_0", None), ("Dense_0/kernel", 1)),
}


def steps(config, parallel=None):
    """Losses and states, NumPy's, of config.train.steps steps; and what was cut of the last."""
    setup = small(config)
    batches, losses, states, cut = setup.batches(), [], [], []
    if parallel is None:
        step, state, put = jax.jit(setup.train_step()), setup.init_state(), dict
    else:
        step = parallel.compile(setup.train_step())
        state, put = parallel.init_state(setup), parallel.shard_batch
    for _ in range(config.train.steps):
        state, metrics = step(state, put(next(batches)))
        losses.append(float(np.ravel(metrics["loss"])[0]))
        states.append(jax.tree.map(np.asarray, state))
    if config.parallel.strategy == "fsdp":
        leaves = jax.tree_util.tree_leaves_with_path(state)
        cut = [fsdp.path_of(path) for path, x in leaves if not x.sharding.is_fully_replicated]
    return losses, states, cut


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), ours, theirs)


def same_numbers(folder):
    """One device, and eight in every way; then a run that changes between them every two steps."""
    config = tiny()
    config.train.steps = 6
    losses, states, _ = steps(config)
    two = losses[:2], states[:2]
    assert_close(two, steps(tiny(), strategies.strategy(tiny()))[:2])
    config = tiny(**FSDP)
    *again, cut = steps(config, strategies.strategy(config))
    assert_close(two, tuple(again))
    config.train.accumulate = 2
    assert_close(two, steps(config, strategies.strategy(config))[:2])
    sampled = {"samples": samples(states[-1].ema_params)}
    return {"losses": losses, "cut": cut} | sampled | planned() | resumed(folder, states[-1])


def samples(params):
    """COUNT samples by one device, by eight with a copy each, and by eight with a part each."""
    every, found = jax.devices(), {}
    for name, devices, parallel in (
        ("one", every[:1], {}), ("pmap", every, {}), ("fsdp", every, FSDP),
    ):  # fmt: skip
        processes.devices = lambda devices=devices: devices
        config = tiny(**parallel)
        generator = small(config).generator
        placed = strategies.to_compute(params, config)
        found[name] = generator(placed, start=0, count=COUNT).images.tolist()
    processes.devices = lambda: every
    return found


def resumed(folder, alone):
    """Two steps by pmap on eight devices, two by fsdp, two on one device: the state of six."""
    every, said = jax.devices(), []
    experiment.pictures.final = lambda *args, **options: None

    def train(count, devices, **parallel):
        config = tiny(**parallel)
        config.train.steps = count
        processes.devices = lambda: devices
        loop.train(small(config), folder, log=said.append)

    train(2, every)
    train(4, every, **FSDP)
    train(6, every[:1])
    task = small(tiny())
    found = loop.Checkpoints(folder).restore(task.to_stored(task.state_shapes()))
    assert_close(task.from_stored(found.state), alone)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "step": found.step,
        "said": said,
        "pictures": sorted(path.name for path in folder.rglob("*.png")),
        "eval_losses": [row["eval_loss"] for row in rows if "eval_loss" in row],
    }


def planned():
    """A plan beside what XLA says that the step's arguments take."""
    config = tiny(**FSDP)
    setup, parallel = small(config), strategies.strategy(config)
    shapes, batch = setup.state_shapes(), setup.batch_shapes(config.train.batch_size)
    step = parallel.compile(setup.train_step())
    compiled = step.lower(*parallel.abstract_inputs(shapes, batch)).compile()
    return {
        "plan": plan.plan_here(config)._asdict(),
        "arguments": compiled.memory_analysis().argument_size_in_bytes,
    }


if __name__ == "__main__":
    from diffjax.commands.process_setup import use_compilation_cache
    from diffjax.training.gc_pause import gc_disabled

    use_compilation_cache()
    with gc_disabled():
        print(json.dumps(same_numbers(Path(sys.argv[1]))))
    sys.exit(0)


@pytest.fixture(scope="module")
def report(tmp_path_factory, own_caches):
    """What this file says as a script with eight virtual devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={DEVICES}"
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path_factory.mktemp("runs"))],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_one_device_pmap_fsdp_and_micro_batches_give_the_same_numbers(report):
    assert report["losses"][0] > report["losses"][-1] > 0  # the script compared the rest


def test_samples_are_the_same_on_one_device_and_on_all(report):
    one, *others = (np.asarray(report["samples"][name]) for name in ("one", "pmap", "fsdp"))
    assert one.shape == (COUNT, 8, 8, 1)
    assert len(np.unique(one.reshape(COUNT, -1), axis=0)) == COUNT
    for images in others:
        assert np.abs(images - one).max() <= 1  # a level, by rounding


def test_a_large_array_is_cut_wherever_it_is_copied(report):
    """The middle's kernel is in parameters, moments, EMA and profile.

    Embed_0, (11, 64), would be cut, and Dense_0's kernel, (1, 64), would not, but for overrides.
    """
    where = ("params", "opt_state/1/0/mu", "opt_state/1/0/nu", "ema_params", "power_emas/0")
    kernels = [f"{place}/middle/kernel" for place in where]
    forced = [f"{place}/Dense_0/kernel" for place in where]
    assert sorted(report["cut"]) == sorted(kernels + forced)


def test_a_run_goes_on_with_another_strategy_and_other_devices(report):
    assert report["step"] == 6
    said = "\n".join(report["said"])
    assert re.search(r"8 x cpu \(pmap\), steps 0 to 2", said)
    assert re.search(r"8 x cpu \(fsdp\), steps 2 to 4", said)
    assert re.search(r"1 x cpu \(pmap\), steps 4 to 6", said)
    assert "step_0000003.png" in report["pictures"]  # drawn by a model in parts
    assert len(report["eval_losses"]) == 3 and np.isfinite(report["eval_losses"]).all()


def test_a_plan_is_what_xla_says_the_arguments_take(report):
    found = report["plan"]
    fields = ("parameters", "optimizer", "averages", "others", "batch")
    assert sum(found[f"of_{field}"] for field in fields) == report["arguments"]
    # Of the middle's kernel, nine matrices, and of that of time each has a quarter.
    cut = 9 * WIDTH**2 + WIDTH
    assert found["of_parameters"] == 4 * (found["parameters"] - cut + cut // PARTS)
    assert (found["devices"], found["mesh"]) == (DEVICES, "data 2 x fsdp 4")
    assert found["of_optimizer"] == pytest.approx(2 * found["of_parameters"], rel=1e-3)
    assert found["of_averages"] == 2 * found["of_parameters"]  # the EMA and one profile
    # Forward, and twice that backward, of the middle's convolution on 32 8x8 images.
    middle = 3 * 2 * 9 * WIDTH**2 * 64 * 32
    assert 0.8 * middle < found["flops"] < 1.5 * middle
    # Gradients, and the activations of a device's four images.
    assert found["of_parameters"] < found["of_temporaries"] < 20 * 2**20


@pytest.mark.parametrize(
    ("shape", "parts", "axis"),
    [
        ((3, 3, 64, 128), 8, 3), ((3, 3, 128, 64), 8, 2), ((64, 64), 8, 1), ((96, 100), 8, 0),
        ((1000,), 8, 0), ((1001,), 8, None), ((4096, 1001), 2, 0), ((3, 3, 64, 128), 1, None),
        ((), 8, None), ((0, 8), 8, None), ((8, 8), 8, None),
    ],
)  # fmt: skip
def test_the_longest_axis_that_divides_is_cut(shape, parts, axis):
    assert fsdp.sharded_axis(shape, parts=parts, min_size=100) == axis


def test_the_mesh_on_what_there_is(monkeypatch):
    one = jax.devices()[0]
    monkeypatch.setattr(processes, "devices", lambda: [one] * 6)
    with pytest.raises(UserError, match=r"config\.parallel\.fsdp = 4 does not divide the 6 dev"):
        fsdp.Fsdp(fsdp=4)


def test_overrides_that_can_not_be(tiny_config):
    tiny_config.parallel.strategy = "fsdp"

    @dataclasses.dataclass
    class Setup:
        shapes: dict

        def state_shapes(self):
            return self.shapes

    setup = Setup({"a": jax.ShapeDtypeStruct((5, 4), np.float32), "b": np.zeros(())})
    for overrides, said in (
        ((("a", 2),), r"\('a', 2\), but a of shape \(5, 4\) can't be cut"),
        ((("A", 0),), r"\('A', 0\), which matches no array's path"),
    ):
        with pytest.raises(UserError, match=said):
            fsdp.Fsdp(overrides=overrides).check(setup)
    fsdp.Fsdp(overrides=(("^a$", 1), ("a", 2))).check(setup)  # the first one decides


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parallel.overrides", ("kernel",)), ("parallel.overrides", (("(", 0),)),
        ("parallel.overrides", (("kernel", -1),)), ("parallel.min_size", 0),
        ("parallel.fsdp", -1), ("parallel.devices", 1.0), ("train.accumulate", 0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(tiny_config, key, value):
    with tiny_config.unlocked(), tiny_config.ignore_type():
        section, last = key.split(".")
        tiny_config[section][last] = value
    with pytest.raises(UserError, match=rf"^config\.{key} = .*: expected [^\n]*$"):
        configs.check(tiny_config)


def test_strategies_and_kernels_that_can_not_be(tiny_config, monkeypatch):
    tiny_config.parallel.strategy = "zero"
    with pytest.raises(UserError, match=r"parallel\.strategy = 'zero': expected one of pmap, fsdp"):
        experiment.resolve(tiny_config)
    tiny_config.parallel.strategy = "fsdp"
    tiny_config.model.kernels = "onednn"
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"model\.kernels = 'onednn' runs on one device, and there"):
        experiment.resolve(tiny_config)
    with pytest.raises(UserError, match="8 devices and 3 micro-batches: use a multiple of 24"):
        check_divides(16, devices=8, accumulate=3)


def test_micro_batches_hold_each_example_once():
    indices, images = micro_batches((jnp.arange(6), jnp.arange(12).reshape(6, 2)), 3)
    assert indices.tolist() == [[0, 3], [1, 4], [2, 5]]
    np.testing.assert_array_equal(images[..., 0], 2 * indices)


def test_the_mean_over_micro_batches_is_that_of_the_batch():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)
    params, learned = {"w": jnp.ones(3)}, {"s": jnp.ones(())}

    def gradients(part):
        def loss(params, learned):
            return jnp.mean((part @ params["w"] - learned["s"]) ** 2)

        return LossAndGrads(*_flat(jax.value_and_grad(loss, (0, 1))(params, learned)), None)

    # The gradient of the whole mean in closed form.
    error = np.asarray(x.sum(1) - 1)
    found = mean_over_micro_batches(gradients, x, count=4)
    np.testing.assert_allclose(found.loss, (error**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(found.grads["w"], 2 * (error[:, None] * x).mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.objective_grads["s"], -2 * error.mean(), rtol=1e-5)


def _flat(found):
    loss, (grads, learned_grads) = found
    return loss, grads, learned_grads


def test_an_objective_that_remembers_losses_does_not_accumulate():
    def gradients(part):
        return LossAndGrads(part.sum(), {}, {}, part)

    with pytest.raises(ValueError, match=r"train\.accumulate = 2 can't be used with [^\n]* 1"):
        jax.eval_shape(lambda x: mean_over_micro_batches(gradients, x, count=2), jnp.zeros(8))


def test_a_plan_from_the_command_line_writes_nothing(tiny_flags, tmp_path, capsys):
    from diffjax.main import main

    folder = tmp_path / "run"
    flags = (
        *tiny_flags, f"--workdir={folder}", "--mode=plan", "--config.parallel.devices=16",
        "--config.parallel.strategy=fsdp", "--config.parallel.min_size=256",
        "--config.parallel.compile=False",
    )  # fmt: skip
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert said.startswith("fsdp on 16 devices (data 1 x fsdp 16), a batch of 16")
    assert "temporary: unknown" in said
    assert not folder.exists()
    assert main([*flags, "--config.train.batch_size=20"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "batch_size = 20 does not divide among 16 devices" in said
