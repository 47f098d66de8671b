"""A run outlives the places of its data, of its first stage and of itself."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import diffjax
from diffjax import main
from diffjax.checkpoints import origin
from diffjax.errors import UserError
from diffjax.experiment.paths import check_apart, names_a_path, without_places
from diffjax.perceptual.inception import inception
from diffjax.perceptual.vgg16 import vgg16


def write_origin(workdir, *, then, working_folder):
    workdir.mkdir(parents=True, exist_ok=True)
    content = {"workdir": str(then), "working_folder": str(working_folder)}
    (workdir / origin.ORIGIN).write_text(json.dumps(content))


def test_a_path_is_looked_for_where_it_was_and_where_it_moved_with_the_run(tmp_path):
    run = tmp_path / "new" / "runs" / "b"
    write_origin(run, then="/old/runs/b", working_folder="/old")
    together = tmp_path / "new" / "runs" / "a"
    places = origin.candidates("runs/a", run, of_run=True)
    assert [str(p) for p in places] == [str(together), "/old/runs/a", "runs/a"]
    places = origin.candidates("runs/a", run, of_run=False)
    assert [str(p) for p in places] == ["runs/a", str(together), "/old/runs/a"]
    places = origin.candidates("/old/runs/a", run, of_run=True)
    assert [str(p) for p in places] == ["/old/runs/a", str(together), "/old/runs/a"]
    assert origin.locate("runs/a", run, of_run=True) == "runs/a"  # nowhere
    together.mkdir()
    assert origin.locate("runs/a", run, of_run=True) == str(together)


def test_a_run_without_a_record_takes_paths_as_they_are(tmp_path):
    assert origin.locate("data", tmp_path, of_run=True) == "data"


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("folder:/a/x", "folder:b", True), ("tfds:a", "tfds:b", False),
        ("my.sets:rings(dir='/a/x', n=3)", "my.sets:rings(dir='/b/x', n=3)", True),
        ("my.sets:rings(dir='/a/x', n=3)", "my.sets:rings(dir='/a/x', n=4)", False),
        ("my.sets:rings(dir='/a/x')", "my.sets:rings(dir='/a/y')", False),
    ],
)  # fmt: skip
def test_the_place_of_data_is_not_compared(one, other, equal):
    first, second = (without_places({"data.name": name}) for name in (one, other))
    assert (first == second) is equal


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with images in data/, which is the working folder."""
    folder = tmp_path / "project"
    random = np.random.default_rng(0)
    for i in range(20):
        path = folder / "data" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    monkeypatch.chdir(folder)
    return folder


def flags_for(tiny_flags, name):
    return [*tiny_flags, "--config.model.class_conditional=False", f"--config.data.name={name}"]


def test_a_run_is_used_and_gone_on_with_after_its_images_and_itself_have_moved(
    tiny_flags, project, tmp_path, monkeypatch, capsys
):
    command = [*flags_for(tiny_flags, "folder:data"), "--workdir=runs/x"]
    assert main.main([*command, "--config.train.steps=2"]) == 0
    drawn = diffjax.load("runs/x").sample(count=2)
    # The whole project has moved, and the working folder is another.
    moved = tmp_path / "elsewhere" / "project"
    moved.parent.mkdir()
    project.rename(moved)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(diffjax.load(moved / "runs" / "x").sample(count=2), drawn)
    there = [flag for flag in command if not flag.startswith("--workdir")]
    there.append(f"--workdir={moved}/runs/x")
    assert main.main([*there, "--mode=sample"]) == 0
    assert main.main([*there, "--config.train.steps=3"]) == 0
    said = capsys.readouterr()
    assert "resuming from step 2" in said.out
    # The images alone have moved, and their new place is given.
    (moved / "data").rename(tmp_path / "images")
    named = [*flags_for(tiny_flags, f"folder:{tmp_path / 'images'}"), there[-1]]
    assert main.main([*named, "--mode=sample", "--config.sample.seed=1"]) == 0
    assert main.main([*named, "--config.train.steps=4"]) == 0
    # Other images are not taken for them.
    shutil.copy(tmp_path / "images" / "00.png", tmp_path / "images" / "99.png")
    capsys.readouterr()
    assert main.main([*named, "--config.train.steps=5"]) == 2
    error = capsys.readouterr().err
    assert "20" in error and "21" in error and "--config.train.init_from" in error


def test_a_latent_model_finds_a_first_stage_that_moved_with_it(
    latent_config, stage_run, tmp_path, monkeypatch
):
    project = tmp_path / "project"
    shutil.copytree(stage_run, project / "runs" / "stage")
    monkeypatch.chdir(project)
    with latent_config.unlocked():
        latent_config.first_stage.workdir = "runs/stage"
        latent_config.train.steps = 2
    assert main.run(latent_config, "runs/latent") == 0
    drawn = diffjax.load("runs/latent").sample(count=2)
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "moved" / "runs" / "latent"
    np.testing.assert_array_equal(diffjax.load(run).sample(count=2), drawn)
    assert main.run(latent_config, run, mode="sample") == 0


def test_home_and_variables_are_expanded_in_flags_and_functions(
    tiny_flags, tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tiny_run.parent))
    monkeypatch.setenv("RUNS", str(tiny_run.parent))
    for place in ("~/run", "$RUNS/run", "${RUNS}/run"):
        assert diffjax.load(place).step == 6
    sample = [*tiny_flags, "--mode=sample", "--config.sample.count=2"]
    assert main.main([*sample, "--workdir=~/run"]) == 0
    assert main.main([*sample, "--workdir=$NOWHERE/run"]) == 2
    out = "--out=$RUNS/exported"
    assert main.main([*tiny_flags, "--workdir=$RUNS/run", "--mode=export", out]) == 0
    assert diffjax.load("~/exported").step == 6


@pytest.fixture
def read_only(tiny_run, tmp_path, monkeypatch):
    """A run in a folder that nothing can be written to, whoever runs the tests."""
    folder = tmp_path / "theirs"
    shutil.copytree(tiny_run, folder)
    write, open_temporary = os.open, tempfile.TemporaryFile

    def refused(path) -> bool:
        return folder in (Path(path), *Path(path).parents)

    def guarded(path, flags, *args, **kw):
        if isinstance(path, str | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            assert not refused(path), path
        return write(path, flags, *args, **kw)

    def no_file(*args, dir=None, **kw):
        if dir is not None and refused(dir):
            raise PermissionError(13, "Permission denied", str(dir))
        return open_temporary(*args, dir=dir, **kw)

    monkeypatch.setattr(os, "open", guarded)
    monkeypatch.setattr(tempfile, "TemporaryFile", no_file)
    return folder


def contents(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_a_run_that_can_only_be_read_is_sampled_into_another_folder(
    tiny_flags, read_only, tmp_path, capsys
):
    before = contents(read_only)
    sample = [*tiny_flags, f"--workdir={read_only}", "--mode=sample", "--config.sample.count=2"]
    assert main.main(sample) == 2
    said = capsys.readouterr().err
    assert "can't be written to: Permission denied" in said and "--out" in said
    assert main.main([*sample, f"--out={tmp_path / 'mine'}"]) == 0
    assert {p.suffix for p in (tmp_path / "mine" / "generated").iterdir()} == {".png", ".npz"}
    assert diffjax.load(read_only).step == 6
    assert contents(read_only) == before


def test_out_is_for_modes_with_results(tiny_flags, tiny_run, tmp_path, capsys):
    train = [*tiny_flags, f"--workdir={tiny_run}", f"--out={tmp_path / 'out'}", "--mode=train"]
    assert main.main(train) == 2
    assert "--out is only for --mode=sample, edit, evaluate, export" in capsys.readouterr().err


def test_an_exported_model_has_a_record_if_its_text_encoder_is_a_folder():
    assert names_a_path("clip(folder='runs/clip')", key="condition.text")
    assert not names_a_path("minilm", key="condition.text")


@pytest.mark.parametrize("read", [vgg16, inception])
def test_home_and_variables_are_expanded_in_files_of_weights(tmp_path, monkeypatch, read):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    (tmp_path / "w.pt").write_bytes(b"no weights")
    for place in ("~/w.pt", "$WEIGHTS/w.pt"):
        with pytest.raises(UserError) as caught:
            read(place)
        assert str(tmp_path / "w.pt") in str(caught.value)
        assert "No such file" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "folder", "workdir", "apart"),
    [
        ("folder:{}/set", "", "{}/set", False), ("folder:{}/set", "", "{}/set/../set", False),
        ("tfds:a", "{}/set", "{}/link", False), ("folder:{}/set", "", "{}/set/run", True),
        ("folder:{}/set", "", "{}", True), ("digits", "", "{}/set", True),
    ],
)  # fmt: skip
def test_the_folder_of_the_images_is_no_workdir(tmp_path, name, folder, workdir, apart):
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")
    place = str(tmp_path)
    data = {"name": name.format(place), "dir": folder.format(place)}
    config = ConfigDict({"data": data})
    with (
        contextlib.nullcontext() if apart else pytest.raises(UserError, match="folder of the data")
    ):
        check_apart(config, Path(workdir.format(place)))
