"""Averages of other lengths by the command line: stored on the way, rebuilt, drawn from."""

import shutil

import jax
import numpy as np
import pytest

from diffjax import flags as command_line
from diffjax.checkpoints import ema_snapshots
from diffjax.checkpoints.store import Checkpoints
from diffjax.experiment import diffusion as experiment
from diffjax.experiment import load as trained
from diffjax.experiment import pictures, restore
from diffjax.main import main
from diffjax.posthoc_ema import Profile

WIDTHS = (0.05, 0.1)
STORED = "--config.train.ema_snapshots=(0.05, 0.1)"
MORE = (
    "--config.model.multipliers=(1,)",
    "--config.model.attention_resolutions=()",
    "--config.train.ema=power(sigma_rel=0.075)",
    "--config.train.schedule=constant",
    "--config.train.learning_rate=0.01",
    "--config.train.checkpoint_every=1",
    "--config.train.eval_every=100",
    "--config.train.sample_every=100",
)


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Those at the end of a training take as long as the training, and are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "final", lambda *args, **options: None)
        yield


@pytest.fixture(scope="module")
def run_of(no_pictures, tmp_path_factory, tiny_flags):
    """The workdir of six steps, a checkpoint at each; not to be written to."""
    workdir = tmp_path_factory.mktemp("ema") / "run"
    assert main([*tiny_flags, *MORE, STORED, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def workdir(run_of, tmp_path):
    """A copy of it."""
    return shutil.copytree(run_of, tmp_path / "run")


@pytest.fixture(scope="module")
def setup_of(tiny_flags):
    """Resolves the config with more flags."""

    def resolve(workdir, *more):
        arguments = [*tiny_flags, *MORE, STORED, f"--workdir={workdir}", *more]
        return experiment.resolve(command_line.parse(arguments).config)

    return resolve


@pytest.fixture
def call(tiny_flags, workdir, capsys):
    """Runs the command line on the copy and returns what it prints."""

    def run(*more, code=0, stored=STORED):
        capsys.readouterr()
        assert main([*tiny_flags, *MORE, stored, f"--workdir={workdir}", *more]) == code
        printed = capsys.readouterr()
        if code:
            assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
        return printed.err if code else printed.out

    return run


def state_of(setup, workdir, step):
    checkpoints = Checkpoints(workdir, read_only=True)
    found = checkpoints.restore(setup.to_stored(setup.state_shapes()), step=step)
    checkpoints.close()
    return found.state


def largest_difference(a, b):
    return max(
        np.abs(np.asarray(x) - y).max()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_each_checkpoint_leaves_a_snapshot_of_each_width(run_of, setup_of):
    folder = run_of / "ema"
    found = ema_snapshots.listing(folder)
    assert [s.profile for s in found] == [Profile(n, w) for n in range(1, 7) for w in WIDTHS]
    setup = setup_of(run_of)
    params = {step: state_of(setup, run_of, step).params for step in (4, 5, 6)}
    # The weights' running sum is (n / 6)^(gamma + 1), where the paper has gamma = 16.97 for 0.05.
    # Steps 1 to 3, whose checkpoints are gone, have 4e-6 of it.
    fifth, fourth = (5 / 6) ** 17.97, (4 / 6) ** 17.97
    weights = (fourth, fifth - fourth, 1 - fifth)
    expected = jax.tree.map(
        lambda *leaves: sum(w * x for w, x in zip(weights, leaves, strict=True)), *params.values()
    )
    stored = ema_snapshots.load(found[-2].path, expected)
    moved = largest_difference(params[5], params[6])
    assert largest_difference(stored, expected) < 1e-3 * moved


def test_a_rebuilt_average_is_the_one_that_training_would_have_kept(workdir, call, setup_of):
    """config.train.ema keeps the average of 0.075 exactly; snapshots of 0.05 and 0.1 give it."""
    printed = call("--mode=ema", "--config.ema.sigma_rel=0.075")
    assert f"wrote {workdir / 'ema' / 'rebuilt.npz'}: sigma_rel 0.075 at step 6 from" in printed
    assert "residual 0.0" in printed and "warning" not in printed
    exact = state_of(setup_of(workdir), workdir, 6).ema_params
    rebuilt = ema_snapshots.load_rebuilt(workdir / "ema", exact)
    nearest = min(
        largest_difference(ema_snapshots.load(s.path, exact), exact)
        for s in ema_snapshots.listing(workdir / "ema")
    )
    assert largest_difference(rebuilt.params, exact) < nearest / 10
    assert (rebuilt.step, rebuilt.sigma_rel) == (6, 0.075)
    with np.load(workdir / "ema" / "rebuilt.npz", allow_pickle=False) as file:
        assert file["step"] == 6 and file["sigma_rel"] == 0.075
        assert 0 < file["residual"] < 0.1

    # A length that the stored ones say little of.
    assert "warning: residual > 0.1" in call("--mode=ema", "--config.ema.sigma_rel=0.005")

    # A stored one is itself.
    call("--mode=ema", "--config.ema.sigma_rel=0.1", "--config.ema.step=4")
    rebuilt = ema_snapshots.load_rebuilt(workdir / "ema", exact)
    stored = ema_snapshots.load(workdir / "ema" / "000000004_0.1.npz", exact)
    assert rebuilt.step == 4 and rebuilt.residual < 1e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), rebuilt.params, stored)


def test_what_is_rebuilt_is_drawn_from(workdir, call, setup_of):
    by_average = "--config.sample.checkpoint=ema"
    for mode in ("sample", "evaluate"):
        error = call(f"--mode={mode}", by_average, code=2)
        assert f"there is no {workdir / 'ema' / 'rebuilt.npz'}: rebuild an average first" in error
    weaker = f"autoguidance(workdir='{workdir}',checkpoint='ema',scale=2.0)"
    guided = f"--config.sample.guidance={weaker}"
    assert "rebuild an average first" in call("--mode=sample", guided, code=2)

    call("--mode=ema", "--config.ema.sigma_rel=0.2", "--config.ema.step=5")
    for checkpoint in ("latest", "ema"):
        call("--mode=sample", f"--config.sample.checkpoint={checkpoint}")
    images = {}
    for path in (workdir / "generated").glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            images[path.stem[-5:]] = file["images"]
    assert images.keys() == {"step5", "step6"}  # the rebuilt one's step, and the last
    assert (images["step5"] != images["step6"]).any()

    setup = setup_of(workdir, by_average, guided)
    step, params = restore.restore_params(setup, workdir)
    assert step == 5
    rebuilt = ema_snapshots.load_rebuilt(workdir / "ema", params).params
    loaded = trained.load(workdir, checkpoint="ema")
    assert loaded.step == 5
    for found in (params, loaded.params, setup.generator.weak_params):
        jax.tree.map(np.testing.assert_array_equal, found, rebuilt)


def test_a_run_that_goes_on_leaves_the_snapshots_of_one_that_never_stopped(run_of, workdir, call):
    call("--mode=ema", "--config.ema.sigma_rel=0.1")
    for step in (5, 6):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    for snapshot in ema_snapshots.listing(workdir / "ema"):
        if snapshot.profile.step > 4:
            snapshot.path.write_bytes(b"of another future")
    (workdir / "ema" / "000000009_0.05.npz").write_bytes(b"of another future")
    assert "resuming from step 4" in call()
    names = {path.name for path in (run_of / "ema").iterdir()}
    assert {path.name for path in (workdir / "ema").iterdir()} == names
    for name in names:
        assert (workdir / "ema" / name).read_bytes() == (run_of / "ema" / name).read_bytes()


def test_what_can_not_be_rebuilt_is_one_line(workdir, call, tmp_path):
    for more, expected in [
        (["--config.ema.sigma_rel=0.3"], "config.ema.sigma_rel = 0.3: expected at most 0.2887"),
        (["--config.ema.step=7"], "step 7 is outside of the snapshots"),
        ([f"--workdir={tmp_path / 'new'}"], "has no checkpoint: train first"),
    ]:
        assert expected in call("--mode=ema", *more, code=2)
    nothing = "--config.train.ema_snapshots=()"
    error = call("--mode=ema", f"--workdir={tmp_path / 'new'}", code=2, stored=nothing)
    assert "config.train.ema_snapshots = (): there are no snapshots" in error
    error = call("--mode=ema", code=2, stored=nothing)
    assert "holds a run with config.train.ema_snapshots = [0.05, 0.1], not []" in error
    for path in (workdir / "ema").iterdir():
        if path.name < "000000003":
            path.unlink()
    assert "use one from 3 to 6" in call("--mode=ema", "--config.ema.step=2", code=2)
    assert not (workdir / "ema" / "rebuilt.npz").exists()

    file = ema_snapshots.Rebuilt({"other": np.ones(2, np.float32)}, 6, 0.1, 0.0)
    ema_snapshots.save_rebuilt(workdir / "ema", file)
    assert "rebuilt.npz lacks" in call("--mode=sample", "--config.sample.checkpoint=ema", code=2)
    (workdir / "ema" / "rebuilt.npz").write_bytes(b"half")
    assert "rebuilt.npz is damaged" in call(
        "--mode=sample", "--config.sample.checkpoint=ema", code=2
    )


def test_an_autoencoder_has_no_averages_to_rebuild(capsys, request, tmp_path):
    config = request.config.rootpath / "experiments" / "fashion_mnist_autoencoder.py"
    for more, expected in [
        (["--mode=ema"], "--mode=ema is for diffusion models"),
        (["--mode=evaluate", "--config.sample.checkpoint=ema"], "expected 'latest', 'best' or a"),
    ]:
        assert main([f"--config={config}", f"--workdir={tmp_path}", *more]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
