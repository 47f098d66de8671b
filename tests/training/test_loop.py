"""The loop from end to end on the digits: pictures, exact resume, faults."""

import json
import math

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax.checkpoints.store import Checkpoints
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.experiment import diffusion as experiment
from diffjax.experiment import restore
from diffjax.training import loop

PICTURES = ("samples.png", "denoising.png", "denoising.gif", "loss.png")


def train(config, folder):
    lines = []
    loop.train(experiment.resolve(config), folder, log=lines.append)
    return lines


def restored(config, folder, step=None):
    setup = experiment.resolve(config)
    like = setup.to_stored(setup.state_shapes())
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(like, step=step)
    checkpoints.close()
    return found


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(whole_folder, tiny_config):
    """The folder of a run that nothing disturbed, made once."""
    if not (whole_folder / "samples.png").exists():
        train(tiny_config, whole_folder)
    return whole_folder


def test_a_run_leaves_pictures_metrics_and_events(whole):
    for name in (*PICTURES, "samples/step_0000004.png"):
        with Image.open(whole / name) as picture:
            picture.verify()
    with Image.open(whole / "denoising.gif") as movie:
        assert movie.n_frames == 4  # three steps: x_T and one more each
    assert json.loads((whole / "config.json").read_text())["train"]["steps"] == 6
    assert list((whole / "tensorboard").glob("events.*"))
    logged = rows(whole)
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3, 4, 6]
    assert [row["step"] for row in logged if "eval_loss" in row] == [3, 6]
    assert all(math.isfinite(value) for row in logged for value in row.values())
    assert {"grad_norm", "learning_rate", "images_per_second"} <= logged[0].keys()


def test_six_steps_are_four_a_stop_and_two_bit_for_bit(tiny_config, whole, tmp_path):
    tiny_config.train.steps = 4
    # The cosine decay knows the last step: what changes must not, for this comparison.
    tiny_config.train.schedule = "constant"
    train(tiny_config, tmp_path / "parts")
    tiny_config.train.steps = 6
    said = train(tiny_config, tmp_path / "parts")
    assert said[1] == f"resuming from step 4 of {tmp_path / 'parts'}"

    train(tiny_config, tmp_path / "at_once")
    parts, at_once = (restored(tiny_config, tmp_path / name) for name in ("parts", "at_once"))
    assert parts.step == at_once.step == 6
    assert parts.data == at_once.data
    jax.tree.map(np.testing.assert_array_equal, parts.state, at_once.state)
    # The samples and the metrics that steps 1..6 leave are the same too.
    for name in ("samples.png", "denoising.png"):
        one, other = (Image.open(tmp_path / run / name) for run in ("parts", "at_once"))
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    losses = [
        {row["step"]: row["eval_loss"] for row in rows(tmp_path / run) if "eval_loss" in row}
        for run in ("parts", "at_once")
    ]
    assert losses[0][6] == losses[1][6]


def test_a_finished_run_draws_its_pictures_again(tiny_config, whole):
    before = (whole / "samples.png").read_bytes()
    (whole / "samples.png").unlink()
    train(tiny_config, whole)
    assert (whole / "samples.png").read_bytes() == before


def test_rows_after_the_checkpoint_are_dropped_on_resume(tiny_config, tmp_path):
    tiny_config.train.steps = 3
    train(tiny_config, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 7.0}\n{"step": 6, "lo')
    tiny_config.train.steps = 4
    train(tiny_config, tmp_path)
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps == sorted(steps) and max(steps) == 4


class Poisoned(experiment.Experiment):
    """An experiment whose fifth loss is NaN."""

    def train_step(self):
        step = super().train_step()

        def train_step(state, batch):
            state, metrics = step(state, batch)
            bad = jax.numpy.where(state.step == 5, jax.numpy.nan, 0.0)
            return state, {**metrics, "loss": metrics["loss"] + bad}

        return train_step


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_checkpoint(
    tiny_config, tmp_path
):
    setup = Poisoned(*experiment.resolve(tiny_config))
    with pytest.raises(UserError, match=r"step 5: loss = nan: .* checkpoint of step 3 is kept"):
        loop.train(setup, tmp_path, log=lambda line: None)
    found = restored(tiny_config, tmp_path)
    assert found.step == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.state))


def test_ema_samples_are_what_is_drawn(tiny_config, whole):
    """Parameters and their average differ, and the pictures come from the average."""
    found = restored(tiny_config, whole)
    setup = experiment.resolve(tiny_config)
    step, params = restore.restore_params(setup, whole)
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, params, found.state.ema_params)
    assert any(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(found.state.params), strict=True)
    )


def test_samples_do_not_depend_on_how_they_are_batched(tiny_config, whole):
    setup = experiment.resolve(tiny_config)
    _, params = restore.restore_params(setup, whole)
    tiny_config.sample.sampler = "ancestral"
    tiny_config.sample.batch_size = 20
    at_once = experiment.resolve(tiny_config).generator(params, start=0, count=20).images
    tiny_config.sample.batch_size = 8
    small = experiment.resolve(tiny_config).generator
    parts = [small(params, start=start, count=10).images for start in (0, 10)]
    # uint8 rounding may turn a difference of one unit in the last place into one grey level.
    difference = np.abs(np.concatenate(parts).astype(int) - at_once)
    assert difference.max() <= 1
    tiny_config.sample.seed = 1
    other = experiment.resolve(tiny_config).generator(params, start=0, count=20).images
    assert (other != at_once).mean() > 0.5


def test_labels_of_samples(tiny_config):
    tiny_config.sample.labels = (3, -1)
    generator = experiment.resolve(tiny_config).generator
    assert generator.conditions.labels(1, 3).tolist() == [-1, 3, -1]
    tiny_config.sample.labels = ()
    conditions = experiment.resolve(tiny_config).generator.conditions
    assert conditions.labels(8, 4).tolist() == [8, 9, 0, 1]
    tiny_config.sample.labels = (10,)
    with pytest.raises(UserError, match=r"config\.sample\.labels has 10: expected classes 0\.\.9"):
        experiment.resolve(tiny_config)
    tiny_config.sample.labels = (1,)
    tiny_config.model.class_conditional = False
    with pytest.raises(UserError, match="not class-conditional"):
        experiment.resolve(tiny_config)


def test_a_workdir_of_another_config_is_left_alone(tiny_config, whole):
    before = (whole / "config.json").read_bytes()
    tiny_config.diffusion.weighting = "snr"
    with pytest.raises(UserError, match=r"config\.diffusion\.weighting = 'uniform', not 'snr'"):
        train(tiny_config, whole)
    assert (whole / "config.json").read_bytes() == before


def test_batch_must_divide_among_devices(tiny_config, tmp_path, monkeypatch):
    device = jax.devices()[0]
    monkeypatch.setattr(processes, "devices", lambda: [device] * 3)
    with pytest.raises(UserError, match="does not divide among 3 devices"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_second_training_in_the_workdir_is_refused(tiny_config, whole):
    from diffjax.checkpoints.lock import lock

    with lock(whole), pytest.raises(UserError, match="in use by another training"):
        train(tiny_config, whole)


def test_sampling_leaves_a_half_written_checkpoint_to_its_writer(tiny_config, whole):
    unfinished = whole / "checkpoints" / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    step, _ = restore.restore_params(experiment.resolve(tiny_config), whole)
    assert step == 6
    assert unfinished.is_dir()
    unfinished.rmdir()


def test_the_checkpoint_to_sample_from_can_be_named(tiny_config, whole):
    setup = experiment.resolve(tiny_config)
    for wanted, steps in (("latest", {6}), ("3", {3}), ("best", {3, 6})):
        setup.config.sample.checkpoint = wanted
        assert restore.restore_params(setup, whole)[0] in steps
    setup.config.sample.checkpoint = "5"
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .* use one of \[3, 6\]"):
        restore.restore_params(setup, whole)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sample.sampler", "ddim(eta=2)"),
        ("sample.sampler", "ancestral(variance='x')"),
        ("sample.sampler", "unipc(order=7)"),
        ("sample.sampler", "rk4(steps=2)"),
        ("sample.guidance", "classifier_free"),
        ("sample.guidance", "classifier_free(scale=2.0, rescale=3.0)"),
        ("sample.guidance", "weaker(scale=2.0)"),
        ("sample.threshold", "dynamic(percentile=200)"),
        ("sample.grid", "karras(rho=0)"),
        ("diffusion.weighting", "min_snr(gamma='x')"),
        ("train.optimizer", "adamw(b1='x')"),
        ("train.schedule", "cosine(x=1)"),
    ],
)
def test_arguments_that_can_not_be_are_told_before_anything_is_written(tiny_config, key, value):
    tiny_config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as caught:
        experiment.resolve(tiny_config)
    assert "\n" not in str(caught.value)


def test_guidance_needs_classes(tiny_config):
    tiny_config.model.class_conditional = False
    tiny_config.sample.guidance = "classifier_free(scale=2.0)"
    with pytest.raises(UserError, match="not class-conditional"):
        experiment.resolve(tiny_config)


def test_guidance_changes_samples_and_scale_1_does_not(tiny_config, whole):
    def images(guidance):
        tiny_config.sample.guidance = guidance
        setup = experiment.resolve(tiny_config)
        _, params = restore.restore_params(setup, whole)
        return setup.generator(params, start=0, count=8).images.astype(int)

    plain = images("none")
    assert np.abs(images("classifier_free(scale=1.0)") - plain).max() <= 1
    assert np.abs(images("classifier_free(scale=8.0)") - plain).max() > 1


def test_parentheses_change_nothing(tiny_config):
    rates = []
    for schedule in ("cosine", " cosine() "):
        tiny_config.train.schedule = schedule
        rates.append(float(experiment.optimisation.learning_rate(tiny_config)(3)))
    assert rates[0] == rates[1] > 0
