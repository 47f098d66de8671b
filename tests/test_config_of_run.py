"""`--config=<workdir>`: a run by its own stored config."""

import json
import shutil

from diffjax import flags
from diffjax.checkpoints import parameters
from diffjax.main import main


def test_a_run_is_its_own_config(tiny_run, tiny_flags):
    found = flags.parse([f"--config={tiny_run}", "--config.sample.steps=7"])
    assert found.workdir == tiny_run and found.config.sample.steps == 7
    expected = flags.parse([*tiny_flags, "--config.sample.steps=7"]).config
    assert found.config.to_dict() == expected.to_dict()
    other = flags.parse([f"--config={tiny_run}", f"--workdir={tiny_run}-2"])
    assert other.workdir == tiny_run.with_name(f"{tiny_run.name}-2")


def test_it_samples_and_goes_on_as_by_its_flags(tiny_run, tiny_flags, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for name, given in (("one", [f"--config={run}"]), ("two", [*tiny_flags, f"--workdir={run}"])):
        assert main([*given, "--mode=sample", f"--out={tmp_path / name}"]) == 0
    one, two = (sorted((tmp_path / name).rglob("*.npz")) for name in ("one", "two"))
    assert one[0].read_bytes() == two[0].read_bytes()

    def steps():
        return parameters.read_parameters(run, wanted="latest", fields=("params",)).step

    before = json.loads((run / "config.json").read_text())["train"]["steps"]
    assert steps() == before
    assert main([f"--config={run}", f"--config.train.steps={before + 1}"]) == 0
    assert steps() == before + 1


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main([f"--config={tmp_path}"]) == 2
    assert f"--config={tmp_path} is a folder without a run: give" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
