"""The command line as a user meets it: each error one line, exit code 2, nothing written."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax import flags
from diffjax.commands.process_setup import use_compilation_cache
from diffjax.main import main

DIGITS = Path(__file__).resolve().parents[1] / "experiments" / "digits.py"
# What the console command `diffjax` runs, by the entry point of setup.cfg.
CONSOLE_COMMAND = "import sys; from diffjax.__main__ import console; sys.exit(console())"


def one_error(capsys, *arguments):
    """Runs main, which must fail, and returns its one line."""
    assert main(list(arguments)) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), printed.err
    assert "Traceback" not in printed.out + printed.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config"], "no config file was given"),
        (["--config=nope.py"], "there is no such file"),
        (["--config=DIGITS:big"], "has no variants"),
        (["--config=FASHION:big"], "has the variant 'quick', not 'big'"),
        (["--config=CFG"], "SyntaxError"),
        (["--config=EMPTY"], "get_config()"),
        (["--config=DIGITS", "stray"], "'stray' is not a flag"),
        (["--config=DIGITS", "--wrokdir=x"], "Did you mean: workdir"),
        (["--config=DIGITS", "--mode=fly"], "train|sample|edit|evaluate|ema"),
        (["--config=DIGITS", "--config.train.stepz=3"], "expected steps"),
        (["--config=DIGITS", "--config.tran.steps=3"], "expected train"),
        (["--config=DIGITS", "--config.train=3"], "is a section"),
        (["--config=DIGITS", "--config.train.steps=abc"], "expected a whole number"),
        (["--config=DIGITS", "--config.train.steps=1.5"], "expected a whole number"),
        (["--config=DIGITS", "--config.train.steps=0"], "expected a whole number >= 1"),
        (["--config=DIGITS", "--config.train.learning_rate=fast"], "expected a number"),
        (["--config=DIGITS", "--config.train.learning_rate=nan"], "expected a number > 0"),
        (["--config=DIGITS", "--config.model.class_conditional=maybe"], "class_conditional"),
        (["--config=DIGITS", "--config.model.multipliers=(1,x)"], "multipliers"),
        (["--config=DIGITS", "--config.data.name=nope"], "expected one of fashion_mnist, digits"),
        (["--config=DIGITS", "--config.data.name=folder:/nope/at/all"], "/nope/at/all"),
        (["--config=FASHION", "--config.data.dir=EMPTYDIR"], "EMPTYDIR"),
        (["--config=DIGITS", "--config.diffusion.schedule=nope"], "expected one of linear_beta"),
        (["--config=DIGITS", "--config.sample.sampler=nope"], "lists them all"),
        (["--config=DIGITS", "--config.sample.steps=2000"], "take at most 1000"),
        (["--config=DIGITS", "--config.model.attention_resolutions=(5,)"], "map heights [8, 4]"),
        (["--config=DIGITS", "--mode=sample"], "has no checkpoint: train first"),
        (["--config=DIGITS", "--mode=evaluate"], "has no checkpoint: train first"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    capsys, tmp_path, monkeypatch, request, arguments, expected
):
    experiments = request.config.rootpath / "experiments"
    outside = tmp_path / "elsewhere"
    (outside / "empty_dir").mkdir(parents=True)
    (outside / "empty.py").write_text("")
    (outside / "broken.py").write_text("def get_config(:\n")
    names = {
        "DIGITS": experiments / "digits.py",
        "FASHION": experiments / "fashion_mnist.py",
        "CFG": outside / "broken.py",
        "EMPTYDIR": outside / "empty_dir",
        "EMPTY": outside / "empty.py",
    }
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    for name, path in names.items():
        arguments = [argument.replace(f"={name}", f"={path}") for argument in arguments]
        expected = expected.replace(name, str(path)) if name == "EMPTYDIR" else expected
    assert expected in one_error(capsys, *arguments)
    assert list(cwd.iterdir()) == []


def test_no_flags_show_commands_that_run(capsys, monkeypatch):
    monkeypatch.chdir(DIGITS.parents[1])
    assert main([]) == 2
    out, err = capsys.readouterr()
    commands = [line.split("#")[0].split() for line in err.splitlines() if " --config=" in line]
    assert len(commands) == 3 and not out
    for command in commands:
        flags.parse([part for part in command if part.startswith("--")])


def test_the_version(capsys):
    import jax

    assert main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert diffjax.__version__ in printed and jax.__version__ in printed


@pytest.mark.slow
@pytest.mark.parametrize("program", [["-m", "diffjax"], ["-c", CONSOLE_COMMAND]])
def test_other_ways_to_start(program, tmp_path):
    (tmp_path / "mine.py").write_text("def pictures(): raise ValueError('mine was imported')")
    flags = [f"--config={DIGITS}", "--config.data.name=mine:pictures"]
    done = subprocess.run(
        [sys.executable, *program, *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and "mine was imported" in done.stderr


@pytest.mark.parametrize("place", ["a_file", "a_file/below", "/proc/diffjax/run"])
def test_a_workdir_that_can_not_be_written(capsys, tmp_path, tiny_flags, place):
    (tmp_path / "a_file").write_text("mine")
    workdir = tmp_path / place if place.startswith("a_") else place
    assert str(workdir) in one_error(capsys, *tiny_flags, f"--workdir={workdir}")
    assert (tmp_path / "a_file").read_text() == "mine"


def test_a_read_only_workdir(capsys, tmp_path, tiny_flags):
    if os.geteuid() == 0:
        pytest.skip("root may write to read-only folders")
    tmp_path.chmod(0o500)
    assert "write" in one_error(capsys, *tiny_flags, f"--workdir={tmp_path / 'run'}")


def test_a_broken_image_is_named(capsys, tmp_path, tiny_flags):
    from PIL import Image

    for name in ("a", "b"):
        Image.new("L", (8, 8), 100).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    line = one_error(
        capsys, *tiny_flags, f"--config.data.name=folder:{tmp_path}",
        "--config.model.class_conditional=False", f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert "b.png" in line
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(tiny_flags):
    from diffjax import UserError

    with pytest.raises(UserError):
        main([*tiny_flags, "--debug", "--config.data.name=nope"])


@pytest.fixture
def no_compilation_cache_yet():
    """JAX as it is in a new process, of which main is to say where compiled programs are kept."""
    import jax

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    with warnings.catch_warnings():
        yield lambda: jax.config.values["jax_compilation_cache_dir"]
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_in_the_users_cache(
    no_compilation_cache_yet, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compilation_cache()
    assert no_compilation_cache_yet() == str(tmp_path / "diffjax" / "xla")
    assert (tmp_path / "diffjax" / "xla").is_dir()


def test_another_place_for_compiled_programs_is_respected(
    no_compilation_cache_yet, tmp_path, monkeypatch
):
    import jax

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    use_compilation_cache()
    assert no_compilation_cache_yet() == str(tmp_path / "mine")
    assert not (tmp_path / "not").exists()


def test_a_cache_folder_that_can_not_be_made_is_one_line(
    no_compilation_cache_yet, tmp_path, monkeypatch, caplog
):
    (tmp_path / "a_file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a_file"))  # nor in the second place
    with caplog.at_level("INFO", logger="diffjax"):
        use_compilation_cache()
    assert no_compilation_cache_yet() is None
    line = caplog.messages[-1]
    assert "Not a directory" in line and "compiled programs are not kept" in line


def test_help(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "--workdir" in printed and "--config.key.name=value" in printed


@pytest.mark.slow
def test_train_sample_and_evaluate_one_after_the_other(capsys, tmp_path, tiny_flags, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the workdir is runs/digits by default
    # A classifier good enough for a test: the recipe itself is tested beside its module.
    from diffjax.evaluation import classifier_features

    short = classifier_features.Recipe(steps=30)
    monkeypatch.setattr(classifier_features, "Recipe", lambda: short)
    assert main(tiny_flags) == 0
    workdir = tmp_path / "runs" / "digits"
    assert (workdir / "samples.png").exists()

    flags = [*tiny_flags, "--mode=sample", "--config.sample.sampler=ddim(eta=0.5)",
             "--config.sample.labels=(3,)", "--config.sample.count=7"]  # fmt: skip
    assert main(flags) == 0
    (archive,) = (workdir / "generated").glob("*.npz")
    with np.load(archive, allow_pickle=False) as found:
        assert found["images"].shape == (7, 8, 8, 1) and found["images"].dtype == np.uint8
        assert found["labels"].tolist() == [3] * 7
    assert archive.with_suffix(".png").exists()
    assert main([*flags, "--config.sample.format=png"]) == 0
    each = sorted((workdir / "generated").glob("*/*.png"))
    assert [path.name for path in each] == [f"seed0_{i:08d}_class3.png" for i in range(7)]
    with np.load(archive, allow_pickle=False) as found:
        for path, image in zip(each, found["images"], strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(path)), image[..., 0])

    assert main([*tiny_flags, "--mode=evaluate"]) == 0
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report["step"] == 6 and report["num_samples"] == 40
    assert 0 < report["floor_train_test"] < report["classifier_frechet_distance"]

    capsys.readouterr()
    line = one_error(capsys, *tiny_flags, "--config.model.blocks=2")
    assert "config.model.blocks = 1, not 2" in line


# Faults of the process itself need one of their own.


def start(flags, workdir, before=()):
    """A run in the background, in the tests' own caches; `before` is a command that execs it."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "diffjax.main", *flags, f"--workdir={workdir}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.005)


def parameters(workdir):
    """The step and every array of the latest checkpoint, read by orbax itself."""
    import jax
    import orbax.checkpoint as ocp

    steps = [
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()
    ]
    state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(max(steps)) / "state")
    return max(steps), [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, tiny_flags):
    flags = [*tiny_flags, "--config.train.steps=100000", "--config.train.checkpoint_every=100000"]
    process = start(flags, tmp_path)
    wait_for(lambda: (tmp_path / "samples").is_dir(), process)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    assert printed.splitlines()[-1].endswith("run the same command again to resume")
    assert "Traceback" not in printed
    step, _ = parameters(tmp_path)
    assert step > 3

    again = start([*tiny_flags, f"--config.train.steps={step + 1}"], tmp_path)
    printed, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert f"resuming from step {step} of" in printed


@pytest.mark.slow
def test_kill_in_the_middle_of_a_checkpoint_loses_nothing_before_it(tmp_path, tiny_flags):
    flags = [*tiny_flags, "--config.train.checkpoint_every=1", "--config.train.steps=25",
             "--config.train.eval_every=1000", "--config.train.sample_every=1000"]  # fmt: skip
    folder = tmp_path / "killed" / "checkpoints"
    process = start(flags, folder.parent)

    def half_written():
        names = os.listdir(folder) if folder.is_dir() else []
        whole = [int(name) for name in names if name.isdecimal()]
        return whole and max(whole) >= 5 and any("tmp" in name for name in names)

    wait_for(half_written, process)
    process.kill()
    process.communicate()
    killed_at, _ = parameters(folder.parent)
    assert 5 <= killed_at < 25

    for workdir in (folder.parent, tmp_path / "undisturbed"):
        run = start(flags, workdir)
        _, errors = run.communicate(timeout=600)
        assert run.returncode == 0, errors
    (step, after), (other_step, undisturbed) = (
        parameters(folder.parent), parameters(tmp_path / "undisturbed")
    )  # fmt: skip
    assert step == other_step == 25
    for a, b in zip(after, undisturbed, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_keeps_what_was_written(tmp_path, tiny_flags):
    """As far as a process can stage a full disk: no file may pass 40 kB."""
    process = start(
        [*tiny_flags, "--config.model.channels=16"],
        tmp_path,
        before=["bash", "-c", 'ulimit -f 40; JAX_ENABLE_COMPILATION_CACHE=0 exec "$@"', "bash"],
    )
    _, printed = process.communicate(timeout=600)
    assert process.returncode == 2, printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "can't write a checkpoint" in errors[0]
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_disk_that_fills_up_elsewhere_is_one_line_too(tmp_path, tiny_flags):
    """4 kB a file: checkpoints and pictures apart, metrics and events don't fit either."""
    process = start(
        tiny_flags,
        tmp_path,
        before=["bash", "-c", 'ulimit -f 1; JAX_ENABLE_COMPILATION_CACHE=0 exec "$@"', "bash"],
    )
    _, printed = process.communicate(timeout=600)
    assert process.returncode == 2, printed
    assert len([line for line in printed.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in printed
