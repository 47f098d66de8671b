"""A run of version 0.1, eight steps of the digits: loaded, sampled and gone on with.

run_0.1.tar.xz holds its config.json, with every key written down, its metrics and a checkpoint of
step 8, which does not say what the run knows of its data.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import diffjax
from diffjax.checkpoints.store import Checkpoints
from diffjax.experiment.diffusion import resolve
from diffjax.flags import parse
from diffjax.main import main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FLAGS = (
    f"--config={ROOT / 'experiments/digits.py'}", "--config.model.channels=8",
    "--config.model.multipliers=(1,)", "--config.model.head_channels=8", "--config.train.steps=10",
    "--config.train.batch_size=16", "--config.train.warmup_steps=2", "--config.train.log_every=2",
    "--config.train.eval_every=4", "--config.train.checkpoint_every=8",
    "--config.train.sample_every=8", "--config.sample.steps=3", "--config.sample.count=10",
    "--config.sample.batch_size=10", "--config.model.kernels=xla",
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    with tarfile.open(HERE / "run_0.1.tar.xz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def rewrite(run, change):
    stored = json.loads((run / "config.json").read_text())
    change(stored)
    (run / "config.json").write_text(json.dumps(stored))


def older(stored):
    """As versions before it had the config: fewer keys, other names and values."""
    del stored["train"]["on_not_finite"], stored["train"]["accumulate"], stored["parallel"]
    stored["diffusion"]["label_dropout"] = stored["diffusion"].pop("condition_dropout")
    stored["model"]["remat"] = False


@pytest.mark.parametrize("change", [lambda stored: None, older], ids=["0.1", "older"])
def test_it_goes_on_from_its_step_bit_for_bit(run, change, capsys):
    rewrite(run, change)
    flags = [*FLAGS, f"--workdir={run}"]
    before = diffjax.load(run)
    assert before.step == 8 and before.about.class_names == tuple("0123456789")
    assert main(flags) == 0
    assert "resuming from step 8" in capsys.readouterr().out
    after = diffjax.load(run)
    assert after.step == 10
    kernel = ("stem", "kernel")
    assert (_leaf(after, kernel) != _leaf(before, kernel)).any()
    # Whatever its config looked like, the state is that of the same ten steps.
    setup = resolve(parse(flags).config)
    state = Checkpoints(run, read_only=True).restore(setup.to_stored(setup.state_shapes())).state
    known = np.load(HERE / "run_0.1_step10.npz")
    np.testing.assert_allclose(state.params["stem"]["kernel"], known["stem"], rtol=1e-4, atol=1e-6)


def test_it_is_sampled_and_exported_by_command(run, tmp_path, capsys):
    rewrite(run, older)
    flags = [*FLAGS, f"--workdir={run}"]
    assert main([*flags, "--mode=sample"]) == 0
    assert main([*flags, "--mode=export", f"--out={tmp_path / 'out'}"]) == 0
    capsys.readouterr()
    with np.load(next((run / "generated").glob("*.npz"))) as found:
        exported = diffjax.load(tmp_path / "out").sample(labels=found["labels"].tolist())
        np.testing.assert_array_equal(exported, found["images"])


def test_another_config_is_still_another_run(run, capsys):
    rewrite(run, older)
    assert main([*FLAGS, f"--workdir={run}", "--config.diffusion.condition_dropout=0.5"]) == 2
    assert "config.diffusion.condition_dropout = 0.1, not 0.5" in capsys.readouterr().err


def test_a_run_on_a_set_that_is_an_example_now(tiny_run, tiny_flags, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    rewrite(run, lambda stored: stored["data"].update(name="emoji"))
    model = diffjax.load(run)
    drawn = model.sample(labels=(3, 7), seed=1)
    np.testing.assert_array_equal(drawn, diffjax.load(tiny_run).sample(labels=(3, 7), seed=1))
    flags = [*tiny_flags, f"--workdir={run}", "--config.data.name=emoji"]
    assert main([*flags, "--mode=sample"]) == 0
    capsys.readouterr()
    assert main([*flags, "--config.train.steps=8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "examples/emoji/fetch.py" in line and "emoji_set:pictures" in line
    assert diffjax.load(run).step == model.step


def _leaf(model, place):
    found = model.params
    for key in place:
        found = found[key]
    return np.asarray(found)
