"""The benchmark of a GPU, as far as a CPU can try it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cases, feeds, variants
from benchmarks.cases import Side
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import choices, results, training
from diffjax.errors import UserError
from diffjax.experiment import schema
from diffjax.models import ops

ROOT = Path(__file__).resolve().parents[2]


def test_rows_are_kept_as_they_come_and_a_cut_one_is_dropped(tmp_path):
    results.append(tmp_path, {"part": "steps", "what": "a | b", "images_per_second": 1234.5})
    results.append(tmp_path, {"part": "training", "what": "grid", "picture": "grid.png"})
    with open(tmp_path / results.ROWS, "a") as file:
        file.write('{"part": "steps", "wh')
    assert [row["part"] for row in results.read(tmp_path)] == ["steps", "training"]
    page = (tmp_path / results.PAGE).read_text()
    assert "| a \\| b | 1234 |" in page and "![grid.png](grid.png)" in page


def test_a_variant_is_adopted_where_it_is_faster_on_every_case():
    def row(variant, case, time, work=1.0):
        figures = {"time_over_first": time, "work_over_first": work}
        return {"part": "steps", "what": "", "variant": variant, "case": case, **figures}

    rows = [
        row("cudnn", "fashion", 0.90), row("cudnn", "cifar10", 0.95),
        row("resident", "fashion", 0.90), row("resident", "28x28", 0.99),
        row("channels-128", "fashion", 1.5, work=2.0), row("kept", "fashion", 0.5),
        {"part": "steps", "what": "fashion", "failed": "no time was left"},
    ]  # fmt: skip
    decisions = {choice.variant: choice.decision for choice in choices.decide(rows)}
    assert decisions.pop("cudnn") == decisions.pop("channels-128") == "adopt"
    assert decisions.pop("resident") == "reject"
    assert "kept" not in decisions
    assert set(decisions.values()) == {"not measured"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--minutes=0"], "--minutes 0.0: expected more than 0"),
        (["--out=FILE"], "expected a folder, found a file"),
        ([], "JAX finds no GPU: --dry runs every part on the CPU"),
    ],
)
def test_what_cannot_run_is_told_in_a_line(tmp_path, monkeypatch, capsys, flags, said):
    file = tmp_path / "file"
    file.touch()
    flags = [f"--out={tmp_path / 'out'}", *(flag.replace("FILE", str(file)) for flag in flags)]
    monkeypatch.setattr(sys, "argv", ["gpu", *flags])
    monkeypatch.setattr(program.machine, "default_device", lambda: "cpu")
    assert program.main() == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_stacked_batches_and_indices_are_the_batches_one_by_one():
    draw = np.random.default_rng(0)
    batches = [{"image": draw.normal(size=(4, 3)).astype(np.float32)} for _ in range(2)]

    def step(state, batch):
        new = 0.5 * state + batch["image"].sum(0)
        return new, {"loss": new.sum()}

    def put(batch):
        return jax.tree.map(jnp.asarray, batch)

    zero = jnp.zeros(3)
    one = feeds.one_by_one(batches, put)
    expected = zero
    for number in range(feeds.STACKED):
        expected, _ = one.around(step)(expected, one.batch(number))
    several = feeds.stacked(batches, put)
    state, metrics = jax.jit(several.around(step))(zero, several.batch(0))
    assert several.steps == len(metrics["loss"]) == feeds.STACKED
    np.testing.assert_allclose(state, expected, rtol=1e-6)
    # A step's indices are of different examples.
    resident = feeds.resident(batches, put)
    fed = resident.batch(0)
    state, _ = jax.jit(resident.around(step))(zero, fed)
    pool = np.concatenate([batch["image"] for batch in batches])
    assert len(set(np.asarray(fed["index"]).tolist())) == 4
    np.testing.assert_allclose(state, pool[np.asarray(fed["index"])].sum(0), rtol=1e-5)


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_variant_s_config_is_one(name):
    # A U-Net's blocks are unrolled always.
    for case in ("dit",) if name == "unrolled" else ("fashion", "cifar10", "28x28"):
        side = Side("diffjax", "xla", "bfloat16", name)
        try:
            schema.check(cases.config_of(cases.load(case, "cpu"), side))
        except UserError as error:
            assert "cudnn" in name and "needs an NVIDIA GPU" in str(error)


@pytest.mark.parametrize("norm", [variants.norm_in_half, variants.norm_unfused])
@pytest.mark.parametrize("silu", [False, True])
def test_other_normalisations_normalise(norm, silu):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(1.0, 2.0, size=(2, 5, 5, 8)), jnp.float32)
    scale, shift = (jnp.asarray(draw.normal(size=(2, 8)), jnp.float32) for _ in range(2))
    ours = norm(x, scale, shift, groups=2, eps=1e-5, silu=silu)
    theirs = ops.group_norm(x, scale, shift, groups=2, eps=1e-5, silu=silu)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    half = norm(x.astype(jnp.bfloat16), scale, shift, groups=2, eps=1e-5, silu=silu)
    assert half.dtype == jnp.bfloat16


def test_a_late_run_is_stopped_as_by_a_signal():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), training.stopped_after(0.0):  # a second at least
        time.sleep(30)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_every_part_runs_dry(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", f"--out={tmp_path}", "--dry", "--minutes=20"],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True,
    )  # fmt: skip
    logs = "".join(path.read_text()[-2000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    rows = [json.loads(line) for line in (tmp_path / results.ROWS).read_text().splitlines()]
    assert {row["what"]: row["ending"] for row in rows if row["part"] == "parts"} == dict.fromkeys(
        ("smoke", "steps", "sampling", "training", "memory"), "ended"
    )
    assert [row for row in rows if "failed" in row] == []
    passed = [row["passed"] for row in rows if "passed" in row]
    assert len(passed) >= 13 and all(passed), rows
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    assert len(rates) >= 10 and min(rates) > 0
    assert (tmp_path / "digits.png").stat().st_size > 0
