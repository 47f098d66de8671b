"""Trained super-resolution from end to end: digits of 2x2 pixels -> 8x8."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax.errors import UserError
from diffjax.experiment.diffusion import resolve
from diffjax.images import to_model_range
from diffjax.main import main
from diffjax.models.network import Pair
from tests.messages import refuses

MAP = "super_resolution(factor=4, resize='bicubic', noise=True, blur=0.5)"
MODEL = {"multipliers": (1,), "class_conditional": False, "attention_resolutions": ()}


@pytest.fixture(scope="module")
def run(tmp_path_factory, own_caches, compile_quickly, tiny_flags):
    folder = tmp_path_factory.mktemp("super_resolution") / "run"
    flags = (
        *tiny_flags, "--config.model.multipliers=(1,)", "--config.model.class_conditional=False",
        f"--config.condition.map={MAP}", "--config.sample.count=4", f"--workdir={folder}",
    )  # fmt: skip
    assert main(list(flags)) == 0
    return folder, flags


@pytest.fixture(scope="module")
def model(run):
    return diffjax.load(run[0])


@pytest.fixture
def config(tiny_config):
    with tiny_config.unlocked():
        tiny_config.condition.map = MAP
        tiny_config.model.update(MODEL)
    return tiny_config.unlock()


def low_file(folder, size, *, mode="L", name="small.png", seed=0):
    """A file of random pixels; size: (width, height)."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def upscaled(run, file, capsys, *more):
    """The images that --mode=edit writes for a file."""
    _, flags = run
    arguments = ["--mode=edit", "--config.edit.task=upscale", f"--config.edit.images={file}"]
    assert main([*flags, *arguments, "--config.edit.count=2", *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [np.asarray(Image.open(line[6:])) for line in lines if line.startswith("wrote ")]


def test_a_file_of_20x12_gives_80x48(run, tmp_path, capsys):
    file = low_file(tmp_path, (20, 12))
    found = upscaled(run, file, capsys)
    assert [image.shape for image in found] == [(48, 80), (48, 80)]
    assert (found[0] != found[1]).any()
    # In Python, and by the samples of another level.
    model = diffjax.load(run[0])
    low = np.asarray(Image.open(file))[None, :, :, None]
    rows = model.edit(low, "upscale", count=2)
    assert rows.shape == (1, 3, 48, 80, 1)
    np.testing.assert_array_equal(rows[0, 1:, ..., 0], found)
    plane = Image.fromarray(low[0, ..., 0].astype(np.float32)).resize((80, 48), Image.BICUBIC)
    wanted = np.clip(np.asarray(plane), 0, 255)
    np.testing.assert_allclose(rows[0, 0, ..., 0], wanted, atol=0.51)
    np.testing.assert_array_equal(model.upscale(low), rows[:, 1])
    noised = upscaled(run, file, capsys, "--config.sample.augmentation_level=0.3")
    by_hand = model.edit(low, "upscale", count=2, augmentation_level=0.3)
    np.testing.assert_array_equal(by_hand[0, 1:, ..., 0], noised)
    assert (noised[0] != found[0]).any()


def test_a_folder_of_files_of_several_sizes(run, tmp_path, capsys):
    low_file(tmp_path, (2, 2), name="a.png")
    low_file(tmp_path, (3, 5), name="b.png")
    found = upscaled(run, tmp_path, capsys, "--config.edit.count=1")
    assert [image.shape for image in found] == [(8, 8), (20, 12)]


@pytest.mark.parametrize("level", [0.0, 0.4])
def test_samples_are_given_the_map_at_its_level(run, level):
    """The condition of samples against the closed form's signal and noise, by number and seed."""
    model = diffjax.load(run[0])
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    generator = model.generator(augmentation_level=level)
    choice = diffjax.inference.sample_conditions.Choice(map_images=images)
    spatial = generator.of(choice, seed=3).conditions.batch(0, 2).map
    clean = generator.conditions.model.make_map(to_model_range(jnp.asarray(images)))
    noise = (np.asarray(spatial.values) - np.cos(np.pi * level / 2) * clean).ravel()
    assert abs(noise.std() - np.sin(np.pi * level / 2)) < 0.08 and spatial.log_snr.shape == (2,)
    later = generator.of(choice, seed=3).conditions.batch(1, 1).map
    np.testing.assert_array_equal(later.values[0], spatial.values[1])
    other = generator.of(choice, seed=4).conditions.batch(0, 2).map
    assert (np.array_equal(other.values, spatial.values)) == (level == 0)


def test_a_run_that_stops_goes_on_bit_for_bit(run, tmp_path):
    folder, flags = run
    shutil.copytree(folder, tmp_path / "run")
    with_noise = diffjax.load(folder).params
    for checkpoint in (tmp_path / "run/checkpoints").glob("6*"):
        shutil.rmtree(checkpoint)
    assert diffjax.load(tmp_path / "run").step == 3
    assert main([*flags, f"--workdir={tmp_path / 'run'}"]) == 0
    again = diffjax.load(tmp_path / "run")
    assert again.step == 6
    jax.tree.map(np.testing.assert_array_equal, again.params, with_noise)


def test_the_level_is_a_parameter_of_noised_maps_alone(config):
    def modules(map_name):
        config.condition.map = map_name
        return set(resolve(config).model.parameter_shapes())

    noised = modules("super_resolution(factor=2)")
    assert noised - modules("super_resolution(factor=2, noise=False)") == {"map_level"}
    assert noised - modules("low_resolution(factor=2)") == {"map_level"}


def seen_by_the_network(setup):
    """The set-up around a network that records the conditions it is given, and that record."""
    seen = []

    def record(label, present, values):
        seen.append((np.asarray(label), np.asarray(present), np.asarray(values)))

    def apply(params, x, t, cond, **how):
        jax.debug.callback(record, cond.label, cond.map.present, cond.map.values)
        return x * params["w"]

    return setup.with_network(Pair(lambda *_: {"w": jnp.ones(())}, apply)), seen


@pytest.mark.parametrize("keep", [True, False])
def test_a_map_that_is_kept_is_there_where_the_class_is_dropped(config, keep):
    """In training and in guidance's unconditional branch alike."""
    config.update_from_flattened_dict({
        "condition.keep_map": keep, "model.class_conditional": True,
        "diffusion.condition_dropout": 0.5, "sample.guidance": "classifier_free(scale=2.0)",
    })  # fmt: skip
    setup, seen = seen_by_the_network(resolve(config))
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1)).astype(np.uint8)
    labels = np.arange(64, dtype=np.int32) % 10
    batch = {"image": images, "label": labels}
    jax.block_until_ready(jax.jit(setup.train_step())(setup.init_state(), batch))
    jax.effects_barrier()
    label, present, _ = seen[-1]
    dropped = label == -1
    assert 10 < dropped.sum() < 54 and (label[~dropped] == labels[~dropped]).all()
    np.testing.assert_array_equal(present, np.ones(64, bool) if keep else ~dropped)

    seen.clear()
    choice = diffjax.inference.sample_conditions.Choice(labels=(3,), map_images=images[:2])
    generator = setup.generator.of(choice)
    params = setup.init_state().params
    generator.denoiser(params)(jnp.ones((2, 8, 8, 1)), 500, generator.conditions.batch(0, 2))
    jax.effects_barrier()
    ((label, present, values),) = seen
    assert label.tolist() == [3, 3, -1, -1] and present.tolist() == [True, True, keep, keep]
    np.testing.assert_array_equal(values[2:], values[:2])


def test_a_map_alone_that_is_kept_is_nothing_to_guide_by(config):
    config.condition.keep_map = True
    config.sample.guidance = "classifier_free(scale=2.0)"
    refuses(lambda: resolve(config), "nor a map that is dropped")
    config.update_from_flattened_dict({"condition.map": "none", "sample.guidance": "none"})
    refuses(lambda: resolve(config), "config.condition.keep_map = True")


def test_training_on_windows_and_sampling_whole_images(config):
    config.data.augment = ("window(size=4)", "flip")
    config.condition.map = "super_resolution(factor=2)"
    setup = resolve(config)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)).astype(np.uint8),
        "label": np.zeros(16, np.int32),
    }
    seen = []

    def apply(params, x, t, cond, **how):
        seen.append((x.shape, cond.map.values.shape))
        return x * params["w"]

    network = Pair(lambda *_: {"w": jnp.ones(())}, apply)
    small = setup.with_network(network)
    state = small.init_state()
    _, metrics = jax.jit(small.train_step())(state, batch)
    assert set(seen) == {((16, 4, 4, 1), (16, 4, 4, 1))} and np.isfinite(metrics["loss"])
    assert setup.space.shape == (8, 8, 1)


def test_what_does_not_fit_is_one_line(config, run, tmp_path, capsys):
    def refused(match, **changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        with pytest.raises(UserError, match=match):
            resolve(changed)

    refused(
        "factor = 3 does not divide images of 8x8",
        **{"condition.map": "super_resolution(factor=3)"},
    )
    refused(r"expected a number in \[0, 1\]", **{"sample.augmentation_level": 1.5})
    quiet = {"condition.map": "super_resolution(factor=2, noise=False)"}
    refused("maps are without noise", **{"sample.augmentation_level": 0.2}, **quiet)
    refused(r"expected a size in \[1, 8\]", **{"data.augment": ("window(size=9)",)})
    attends = {"data.augment": ("window(size=4)",), "model.attention_resolutions": (8,)}
    refused("images 4 high", **attends)
    _, flags = run
    edit = [*flags, "--mode=edit", "--config.edit.task=upscale"]
    coloured = low_file(tmp_path, (4, 4), mode="RGB", name="colour.png")
    assert main([*edit, f"--config.edit.images={coloured}"]) == 2
    assert "is RGB and the model's images are grey" in capsys.readouterr().err


LOW = np.zeros((2, 3, 5, 1), np.uint8)
WRONG = [
    *[
        (dict(images=images), "images")
        for images in (None, 3, "a", [[1.0]], LOW[0], LOW[:0], LOW / 255, LOW.repeat(3, -1),
                       [LOW, LOW[:1]])
    ],
    *[(dict(labels=labels), "labels") for labels in (None, 3, [1.5], [2], [1, 2, 3])],
    *[(dict(prompts=prompts), "prompts") for prompts in (None, "text", ["a red apple"])],
    *[(dict(seed=seed), "seed") for seed in (None, 1.5, -1, True)],
    *[(dict(augmentation_level=level), "augmentation_level") for level in ("a", -0.1, [0.1], None)],
    (dict(steps="5"), "steps"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "word"), WRONG)
def test_a_wrong_argument_is_named(model, changes, word):
    refuses(lambda: model.upscale(**{"images": LOW, **changes}), word)


def test_upscaling_takes_no_mask(model):
    refuses(lambda: model.edit(LOW, "upscale", mask=np.ones((3, 5))), "takes no mask")


def test_a_model_without_the_map_can_not_upscale(tiny_run, tiny_flags, tmp_path, capsys):
    file = low_file(tmp_path, (4, 4))
    edit = [*tiny_flags, f"--workdir={tiny_run}", "--mode=edit", "--config.edit.task=upscale"]
    assert main([*edit, f"--config.edit.images={file}"]) == 2
    assert "needs a model that is conditioned on low-resolution images" in capsys.readouterr().err
