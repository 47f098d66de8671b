"""examples/doors from a folder outside the repository: trained, gone on with, loaded, sampled."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import diffjax
from diffjax.main import main
from diffjax.training.telemetry import StepTimer

ROOT = Path(__file__).resolve().parents[2]
SHORT = (
    "--config.train.batch_size=16", "--config.train.warmup_steps=2", "--config.train.log_every=2",
    "--config.train.eval_every=2", "--config.train.checkpoint_every=2",
    "--config.train.sample_every=100", "--config.sample.count=12", "--config.sample.batch_size=12",
    "--config.sample.steps=4",
)  # fmt: skip
SHAPES = {
    "rings": ((2,), np.float32),
    "tones": ((32, 1), np.float32),
    "digits_transformer": ((8, 8, 1), np.uint8),
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A user's folder, which is on no path."""
    folder = tmp_path_factory.mktemp("own") / "code"
    shutil.copytree(ROOT / "examples" / "doors", folder)
    return folder


@pytest.fixture(scope="module", params=SHAPES)
def run(request, own, tmp_path_factory):
    """(name, arguments, workdir) of four steps, and two more after a stop."""
    name = request.param
    workdir = tmp_path_factory.mktemp(name) / "run"
    arguments = [f"--config={own / f'{name}.py'}", f"--workdir={workdir}", *SHORT]
    assert main([*arguments, "--config.train.steps=4"]) == 0
    arguments.append("--config.train.steps=6")
    assert main(arguments) == 0
    return name, arguments, workdir


def test_it_trains_goes_on_and_leaves_pictures(run):
    _name, _, workdir = run
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4, 5, 6]
    assert all(np.isfinite(row["eval_loss"]) for row in rows if "eval_loss" in row)
    for picture in ("samples.png", "denoising.png", "denoising.gif", "loss.png"):
        assert (workdir / picture).stat().st_size > 500
    stored = json.loads((workdir / "config.json").read_text())
    assert ":" in stored["model"]["name"] or ":" in stored["data"]["name"]


def test_it_is_loaded_and_sampled_by_its_paths(run, capsys):
    name, arguments, workdir = run
    shape, dtype = SHAPES[name]
    model = diffjax.load(workdir)
    assert model.step == 6 and model.about.class_names
    drawn = model.sample(labels=(0, 1, -1), seed=3)
    assert drawn.shape == (3, *shape) and drawn.dtype == dtype
    assert main([*arguments, "--mode=sample", "--config.sample.seed=3"]) == 0
    capsys.readouterr()
    (archive,) = (workdir / "generated").glob("*seed3*.npz")
    with np.load(archive) as found:
        by_command = found["images" if dtype == np.uint8 else "x_0"]
        labels = found["labels"]
    np.testing.assert_array_equal(model.sample(labels=labels.tolist(), seed=3), by_command)


def test_the_exported_model_draws_the_same(run, tmp_path, capsys):
    _name, arguments, workdir = run
    out = tmp_path / "exported"
    assert main([*arguments, "--mode=export", f"--out={out}"]) == 0
    capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    here, there = diffjax.load(workdir), diffjax.load(out)
    np.testing.assert_array_equal(here.sample(labels=(1,)), there.sample(labels=(1,)))
    assert main([*arguments, "--mode=export", f"--out={out}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_model_of_arrays_encodes_and_has_a_density_but_no_edits(run):
    name, _, workdir = run
    model = diffjax.load(workdir)
    x = model.sample(labels=(0, 1))
    noise = model.encode(x, labels=(0, 1))
    assert noise.shape == x.shape and noise.dtype == np.float32
    assert model.decode(noise, labels=(0, 1)).dtype == x.dtype
    estimates = model.denoise(noise, model.diffusion.schedule.T // 2, labels=(0,))
    assert estimates.x_0.shape == estimates.eps.shape == x.shape
    assert np.isfinite(model.log_likelihood(x, labels=(0, 1), rtol=1e-2, atol=1e-2)).all()
    compiled = StepTimer().row()["compilations"]
    model.denoise(noise, 3 * model.diffusion.schedule.T // 4, labels=(1,))
    # The same programs serve other times and conditions.
    assert StepTimer().row()["compilations"] == compiled
    for call, expected in (
        (lambda: model.decode(np.zeros((2, 5, 5))), "expected"),
        (lambda: model.sample(count=0), "count is 0"),
        (lambda: model.sample(count=2.5), "count is 2.5"),
        (lambda: model.sample(labels=3), "labels is 3: expected a list"),
        (lambda: model.sample(labels=["3"]), "expected a list of whole numbers"),
        (lambda: model.sample("a dog"), "put it in a list"),
        (lambda: model.sample(guidance=2.0), "config.sample.guidance = 2.0: expected a name"),
        (lambda: model.sample(labels=(0,), size=3), "size is not a setting of sampling"),
        (lambda: model.sample(labels=(0,), seed=-1), "seed is -1"),
        (lambda: model.encode(x, labels=(0, 1, 0)), "3 labels for 2 examples"),
        (lambda: model.log_likelihood(x, divergence="exakt"), "'hutchinson' or 'exact'"),
        (lambda: diffjax.load(workdir, checkpoint="lastest"), "expected 'latest', 'best'"),
        (lambda: diffjax.load(workdir, checkpoint=5), "use one of"),
    ):
        with pytest.raises(diffjax.UserError, match=expected):
            call()
    assert diffjax.load(workdir, checkpoint=4).step == 4
    if name != "digits_transformer":
        with pytest.raises(diffjax.UserError, match="edits are of images"):
            model.edit(x, "vary(strength=0.5)")


def test_what_has_no_frechet_features_says_so(run, capsys):
    name, arguments, _ = run
    if name == "digits_transformer":
        pytest.skip("digits are images")
    for kind, expected in (("none", "distances need images"), ("ode", "needs images")):
        flags = ("--mode=evaluate", f"--config.evaluate.likelihood={kind}")
        assert main([*arguments, *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line


def test_a_process_that_only_loads_needs_no_training_library(run, own):
    _name, _, workdir = run
    code = (
        "import sys, diffjax; model = diffjax.load(sys.argv[1]); model.sample(labels=(1,));"
        "print([m for m in ('optax', 'orbax', 'grain', 'tensorflow_datasets', 'sklearn',"
        "'matplotlib') if m in sys.modules and (m != 'optax' or 'flax.nnx' not in sys.modules)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(workdir)],
        env={"PYTHONPATH": f"{ROOT}:{own}", "PATH": "/usr/bin:/bin", "HOME": str(workdir)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]" and done.stderr == ""


def test_a_loss_with_a_state_goes_on_bit_for_bit(own, tmp_path):
    from diffjax.checkpoints.parameters import read_parameters

    flags = [
        f"--config={own / 'digits_transformer.py'}", *SHORT,
        "--config.diffusion.objective=losses:Normalised(decay=0.5)",
    ]  # fmt: skip
    for name, stops in (("whole", (4,)), ("parts", (2, 4))):
        for steps in stops:
            assert (
                main([*flags, f"--workdir={tmp_path / name}", f"--config.train.steps={steps}"]) == 0
            )
    whole, parts = (
        read_parameters(tmp_path / name, wanted="latest", fields=("params", "learned"))
        for name in ("whole", "parts")
    )
    mean = whole.fields["learned"]["history"]["mean"]
    assert mean != 1.0 and mean == parts.fields["learned"]["history"]["mean"]
    np.testing.assert_array_equal(
        whole.fields["params"]["Dense_0"]["kernel"], parts.fields["params"]["Dense_0"]["kernel"]
    )
