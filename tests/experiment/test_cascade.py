"""A cascade from end to end: digits of 4x4 pixels -> 8x8, and what does not fit."""

import json
import shlex
import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax import data, flags
from diffjax.checkpoints import exported
from diffjax.checkpoints.parameters import Parameters
from diffjax.errors import UserError
from diffjax.experiment import cascade, defaults, schema
from diffjax.experiment.dataset import load_train
from diffjax.experiment.model import kept, resolve_model
from diffjax.inference.cascade import stage_seed
from diffjax.main import run
from diffjax.perceptual import EmbeddingNetwork
from tests.messages import refuses
from tests.weights import normal_like

MAP = "super_resolution(factor=2, downsample='bicubic')"
SMALL = (
    "--config.model.multipliers=(1,)", "--config.model.blocks=1", "--config.sample.count=4",
    "--config.sample.guidance=classifier_free(scale=2.0)",
)  # fmt: skip
STAGES = {
    "base": ("--config.data.image_size=4",),
    "upsampler": (f"--config.condition.map={MAP}", "--config.condition.keep_map=True",
                  "--config.model.resample_first=True", "--config.model.scale_skips=True"),
    # Of windows of 4x4 pixels, from 2x2: it takes any size.
    "windows": (f"--config.condition.map={MAP}", "--config.model.class_conditional=False",
                "--config.data.augment=('window(size=4)',)", "--config.sample.guidance=none"),
    "colour": (f"--config.condition.map={MAP}", "--config.data.channels=3"),
    "factor4": ("--config.condition.map=super_resolution(factor=4)",),
    "silhouette": ("--config.data.image_size=4", "--config.condition.map=silhouette"),
    "unconditional": ("--config.data.image_size=4", "--config.model.class_conditional=False",
                      "--config.sample.guidance=none"),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, own_caches, compile_quickly, tiny_flags):
    """run_of(name) -> an exported model with random parameters, made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("cascade"), {}

    def run_of(name, *more):
        if name not in made:
            made[name] = root / name
            config = flags.parse([*tiny_flags, *SMALL, *STAGES.get(name, ()), *more]).config
            schema.check(config)
            about = data.describe(load_train(config))
            model = resolve_model(config, about)
            if model.conditions.texts:
                about = about._replace(vocabulary=model.conditions.texts.vocabulary)
            params = normal_like(model.parameter_shapes(), scale=0.1)
            found = Parameters(3, {"ema_params": params}, kept(about, model.identity))
            exported.write(made[name], found, config.to_dict())
        return str(made[name])

    return run_of


def config_of(*stages, **changes):
    config = defaults.cascade()
    config.cascade.stages = stages
    config.sample.update(count=6, batch_size=6)
    config.evaluate.num_samples = 40
    config.update_from_flattened_dict(changes)
    config = schema.complete(config)
    schema.check(config)
    return config.lock()


@pytest.fixture
def two(runs):
    return runs("base"), runs("upsampler")


def test_samples_of_a_config_are_those_of_python(two, tmp_path, capsys):
    levels = {"cascade.augmentation_level": (None, 0.2), "sample.labels": (3, 5)}
    config = config_of(*two, **levels, **{"cascade.steps": (None, 2), "sample.seed": 7})
    assert run(config, tmp_path / "out", "sample") == 0
    written = [line.removeprefix("wrote ") for line in capsys.readouterr().out.splitlines()]
    (grid, stages, archive) = written
    with np.load(archive) as arrays:
        found = dict(arrays)
    assert found["images"].shape == (6, 8, 8, 1) and found["stage_1"].shape == (6, 4, 4, 1)
    assert found["labels"].tolist() == [3, 5, 3, 5, 3, 5]

    settings = [{}, {"augmentation_level": 0.2, "steps": 2}]
    by_hand = diffjax.cascade(list(two), settings=settings)
    images = by_hand.sample_stages(labels=[3, 5], count=6, seed=7)
    np.testing.assert_array_equal(images[0], found["stage_1"])
    np.testing.assert_array_equal(images[1], found["images"])
    loaded = diffjax.cascade([diffjax.load(stage) for stage in two], settings=settings)
    np.testing.assert_array_equal(loaded.sample(labels=[3, 5], count=6, seed=7), found["images"])
    assert (by_hand.sample(labels=[3, 5], count=6, seed=8) != found["images"]).any()
    # The base's images are those of the base alone, whatever comes after it.
    alone = diffjax.load(two[0]).sample(labels=[3, 5], count=6, seed=7)
    np.testing.assert_array_equal(alone, found["stage_1"])

    # A row a sample, "4x4" enlarged and "8x8", at the right of the class's name.
    picture = np.asarray(Image.open(stages))
    tile = 96  # of 8 pixels
    first = np.kron(found["images"][0, ..., 0], np.ones((12, 12), np.uint8))
    low = np.kron(found["stage_1"][0, ..., 0], np.ones((24, 24), np.uint8))
    right = picture[:, -tile - 2 : -2]
    left = picture[:, -2 * tile - 4 : -tile - 4]
    top = next(y for y in range(len(picture)) if (right[y : y + tile] == first).all())
    np.testing.assert_array_equal(left[top : top + tile], low)
    assert len(picture) == top + 6 * (tile + 2)
    assert Image.open(grid).size[0] > 0


def test_settings_of_a_stage_are_its_run_s_unless_overridden(two):
    changes = {"cascade.threshold": ("dynamic(percentile=99)", None), "cascade.steps": (5, None)}
    model = cascade.resolve(config_of(*two, **changes))
    first, second = model.generator.generators
    assert len(first.sampling.grid.t) - 1 == 5 and len(second.sampling.grid.t) - 1 == 3
    resolved = model.config.cascade
    assert resolved.steps == (5, 3) and resolved.sampler == ("dpm_solver_pp_2m",) * 2
    assert resolved.threshold == ("dynamic(percentile=99)", "clip")
    assert resolved.guidance == ("classifier_free(scale=2.0)",) * 2
    assert (model.step, model.about.shape) == ("3-3", (8, 8, 1))
    assert model.generator.conditions.labels(0, 3).tolist() == [0, 1, 2]


@pytest.mark.slow
def test_single_files_are_resumed(two, tmp_path, capsys):
    config = config_of(*two, **{"sample.format": "png,npz", "sample.batch_size": 4})
    for _ in range(2):
        assert run(config, tmp_path, "sample") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "6 PNG files" in lines[0] and "0 PNG files (6 more were there)" in lines[2]
    (archive,) = (tmp_path / "generated").glob("*.npz")
    with np.load(archive) as arrays:
        assert arrays["stage_1"].shape == (6, 4, 4, 1)
    (png, *_) = sorted((tmp_path / "generated").rglob("*.png"))
    about = json.loads(Image.open(png).text["diffjax"])
    assert about["step"] == "3-3" and about["cascade"]["steps"] == [3, 3]


@pytest.mark.slow
def test_levels_are_swept(two, tmp_path, monkeypatch):
    eight = EmbeddingNetwork("rows", (), lambda params, x: x.mean((2, 3)), 8, "rows")
    monkeypatch.setitem(sys.modules, "own_features", types.SimpleNamespace(rows=eight))
    features = {"evaluate.features": "own_features:rows"}
    config = config_of(*two, **features, **{"evaluate.augmentation_levels": (0.3, 0.0)})
    assert run(config, tmp_path, "evaluate") == 0
    reports = json.loads((tmp_path / "evaluation_levels.json").read_text())
    assert [report["augmentation_level"] for report in reports] == [0.3, 0.0]
    distances = [report["frechet_distance"] for report in reports]
    assert distances[0] != distances[1] and np.isfinite(distances).all()
    assert [r["cascade"]["augmentation_level"] for r in reports] == [[0.0, 0.3], [0.0, 0.0]]
    assert Image.open(tmp_path / "evaluation_levels.png").size[0] > 400
    # The level 0 is that of the runs.
    assert run(config_of(*two, **features), tmp_path, "evaluate") == 0
    alone = json.loads((tmp_path / "evaluation.json").read_text())
    assert alone["frechet_distance"] == distances[1] and alone["step"] == "3-3"


@pytest.mark.slow
def test_an_upsampler_trained_on_windows_enlarges_whole_images(runs, tmp_path):
    """Twice in a row, and without the class that the base takes."""
    stages = [runs("base"), runs("windows"), runs("windows")]
    found = diffjax.cascade(stages).sample_stages(labels=[3], count=3, seed=1)
    assert [images.shape for images in found] == [(3, 4, 4, 1), (3, 8, 8, 1), (3, 16, 16, 1)]
    # The last stage's images are what the upsampler draws of the images before them.
    by_hand = diffjax.load(stages[2]).upscale(found[1], seed=stage_seed(1, 2))
    np.testing.assert_array_equal(by_hand, found[2])
    assert run(config_of(*stages), tmp_path, "sample") == 0
    with pytest.raises(UserError, match=r"draws images of \(16, 16, 1\), and its last stage's"):
        run(config_of(*stages), tmp_path, "evaluate")


@pytest.mark.slow
def test_a_kept_map_is_guided_by_the_class(two):
    """Of the stored run: the unconditional branch still has the low-resolution image."""
    model = diffjax.load(two[1])
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
    how = {"labels": [3], "map_images": images, "threshold": "none"}
    x_t = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)
    one, two_, none = (
        model.denoise(x_t, 500, guidance=f"classifier_free(scale={w})", **how).x_0
        for w in (1.0, 2.0, 0.0)
    )
    np.testing.assert_allclose(two_, 2 * one - none, atol=1e-4)
    by_no_class = model.denoise(x_t, 500, guidance="none", **(how | {"labels": [-1]})).x_0
    np.testing.assert_allclose(none, by_no_class, atol=1e-5)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (("upsampler", "upsampler"), ("stage 1", "enlarges images by 2", "base model")),
        (("silhouette", "upsampler"), ("stage 1", "is conditioned on a map")),
        (("base", "base"), ("stage 2", "is not conditioned on low-resolution images")),
        (("base", "upsampler", "upsampler"), ("stage 3", "makes 8x8 of 4x4", "draws 8x8")),
        (("base", "factor4"), ("stage 2", "makes 8x8 of 2x2 (factor 4)", "draws 4x4")),
        (("base", "colour"), ("stage 2", "3 channels", "draws 1")),
        (("unconditional", "upsampler"), ("stage 2", "takes a class and stage 1")),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, tuple) else "",
)
def test_stages_that_do_not_fit_are_one_line(runs, stages, words):
    folders = [runs(stage) for stage in stages]
    refuses(lambda: diffjax.cascade(folders), *words)
    refuses(lambda: cascade.resolve(config_of(*folders)), *words)


def test_texts_of_the_stages(runs, tmp_path):
    """Of the same words, or none in the upsampler; held-out images are next to their captions."""
    for word in ("square", "circle"):
        for split, count in (("train", 4), ("test", 2)):
            (tmp_path / word / split).mkdir(parents=True)
            rows = []
            for i in range(count):
                image = np.full((8, 8, 3), 40 * i, np.uint8)
                Image.fromarray(image).save(tmp_path / word / split / f"{i}.png")
                rows.append(json.dumps({"file_name": f"{i}.png", "text": f"a {word} {split}"}))
            (tmp_path / word / split / "metadata.jsonl").write_text("\n".join(rows))

    def text(word):
        return (
            f"--config.data.name=folder:{tmp_path / word}",
            "--config.model.class_conditional=False",
            "--config.condition.text=transformer(width=8, heads=2, layers=1, length=4)",
        )  # fmt: skip

    up = f"--config.condition.map={MAP}"
    base = runs("text base", *text("square"), "--config.data.image_size=4")
    later = runs("text upsampler", *text("square"), up)
    other = runs("circle upsampler", *text("circle"), up)
    quiet = runs("no text", *text("square"), up, "--config.condition.text=none",
                 "--config.sample.guidance=none")  # fmt: skip
    silent = runs("no text base", *text("square"), "--config.data.image_size=4",
                  "--config.condition.text=none", "--config.sample.guidance=none")  # fmt: skip
    refuses(lambda: diffjax.cascade([base, other]), "stage 2", "another text encoder or vocabulary")
    refuses(lambda: diffjax.cascade([silent, later]), "stage 2", "takes a text and stage 1")
    for last in (later, quiet):
        model = cascade.resolve(config_of(base, last))
        assert model.generator.conditions.captions(0, 2) == ["a square test"] * 2
        assert sorted(model.truth[:, 0, 0, 0].tolist()) == [0, 40]
        given = cascade.resolve(config_of(base, last, **{"sample.prompt": "a square"}))
        assert given.truth is None
    refuses(lambda: diffjax.cascade([base, later]).sample(), "nothing to condition on")


def test_classes_of_other_names_are_refused(two):
    base, later = map(diffjax.load, two)
    base.about = base.about._replace(class_names=tuple("abcdefghij"))
    refuses(lambda: diffjax.cascade([base, later]), "stage 2", "a, b, c, ...; 10 in all")


def test_a_factor_that_does_not_divide_is_refused(tmp_path, two):
    shutil.copytree(two[1], tmp_path / "run")
    stored = json.loads((tmp_path / "run/config.json").read_text())
    stored["condition"]["map"] = "super_resolution(factor=3)"
    (tmp_path / "run/config.json").write_text(json.dumps(stored))
    refuses(
        lambda: diffjax.cascade([two[0], tmp_path / "run"]),
        "stage 2", "factor = 3 does not divide images of 8x8",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cascade.stages": ("BASE", "NOWHERE")}, ("stage 2", "holds no run")),
        ({"cascade.stages": ("BASE",)}, ("config.cascade.stages", "two workdirs or more")),
        ({"cascade.steps": (3,)}, ("config.cascade.steps", "each of the 2 stages")),
        ({"cascade.steps": (3, 0)}, ("config.cascade.steps", "a whole number >= 1")),
        ({"cascade.steps": (3, True)}, ("config.cascade.steps", "a whole number >= 1")),
        ({"cascade.threshold": (None, "clop")}, ("stage 2", "'clop'")),
        ({"cascade.augmentation_level": (0.1, 0.1)}, ("stage 1", "maps are without noise")),
        ({"cascade.augmentation_level": (None, 1.1)}, ("a number in [0, 1]",)),
        ({"cascade.checkpoint": (None, "77")}, ("stage 2", "77")),
        ({"sample.labels": (10,)}, ("labels has 10", "0..9")),
        ({"sample.prompt": "a dog"}, ("takes no text",)),
        ({"sample.negative_prompt": "a dog"}, ("negative_prompt = 'a dog'", "no stage")),
        ({"evaluate.augmentation_levels": (0.1, 2)}, ("evaluate.augmentation_levels",)),
    ],
    ids=str,
)
def test_wrong_values_are_one_line(two, changes, words):
    stages = changes.get("cascade.stages", two)
    folders = [two[0] if stage == "BASE" else stage for stage in stages]
    rest = {key: value for key, value in changes.items() if key != "cascade.stages"}
    refuses(lambda: cascade.resolve(config_of(*folders, **rest)), *words)


def test_wrong_arguments_are_named(two):
    refuses(lambda: diffjax.cascade(two[0]), "stages is", "in a list")
    refuses(lambda: diffjax.cascade(3), "stages is 3")
    refuses(lambda: diffjax.cascade([two[0]]), "two stages or more")
    refuses(lambda: diffjax.cascade(two, settings=[{}]), "1 settings for 2 stages")
    refuses(lambda: diffjax.cascade(two, settings=[{}, {"colour": 3}]), "stage 2", "colour")
    model = diffjax.cascade(two)
    refuses(lambda: model.sample(["a dog"]), "takes no text")
    refuses(lambda: model.sample(labels=[10]), "labels has 10")
    refuses(lambda: model.sample(count=0), "count")
    refuses(lambda: model.sample(seed=-1), "seed")


def test_training_names_the_stages_commands(tmp_path):
    stages = ("runs/base", "elsewhere/up")
    config = config_of(*stages)
    with pytest.raises(UserError, match=r"train runs/base, elsewhere/up, each by its own config"):
        run(config, tmp_path / "new", "train")
    files = {"cascade.configs": ("a/x.py:one", "y.py")}
    with pytest.raises(UserError) as caught:
        run(config_of("runs/x-one", "elsewhere/up", **files), tmp_path / "new", "train")
    message = str(caught.value)
    assert "\n" not in message
    commands = [shlex.split(part) for part in message.partition(": ")[2].split("; ")[:2]]
    assert commands[0] == ["python", "-m", "diffjax.main", "--config=a/x.py:one"]
    assert commands[1][3:] == ["--config=y.py", "--workdir=elsewhere/up"]
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="this config is of a cascade: expected one of train, samp"):
        run(config, tmp_path / "new", "edit")
