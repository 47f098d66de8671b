"""A model of texts and maps from end to end: train, sample by prompt, edit, load in Python."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax import main
from diffjax.errors import UserError
from diffjax.experiment import conditioning as conditions
from diffjax.experiment import diffusion as experiment
from diffjax.experiment.conditioning import Texts
from diffjax.experiment.load import load
from diffjax.models.condition import Text

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A folder of captioned 8x8 squares before white."""
    root = tmp_path_factory.mktemp("squares")
    for split, count in (("train", 8), ("test", 2)):
        folder = root / split
        folder.mkdir()
        rows = []
        for name, colour in COLOURS.items():
            for i in range(count):
                image = np.full((8, 8, 3), 255, np.uint8)
                image[2 : 5 + i % 3, 1:6] = colour
                Image.fromarray(image).save(folder / f"{name}{i}.png")
                rows.append({"file_name": f"{name}{i}.png", "text": f"a {name} square"})
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture
def text_config(tiny_config, squares):
    with tiny_config.unlocked():
        tiny_config.data.name = f"folder:{squares}"
        tiny_config.model.update(
            class_conditional=False, multipliers=(1,), blocks=1, attention_resolutions=()
        )
        tiny_config.condition.text = "transformer(width=8, heads=2, layers=1, length=4)"
        tiny_config.condition.map = "silhouette"
        tiny_config.sample.update(count=4, guidance="classifier_free(scale=2.0)")
    return tiny_config


@pytest.fixture(scope="module")
def text_run(tmp_path_factory, squares, own_caches, tiny_flags):
    folder = tmp_path_factory.mktemp("text") / "run"
    flags = (
        f"--config.data.name=folder:{squares}", "--config.model.class_conditional=False",
        "--config.condition.text=transformer(width=8,heads=2,layers=1,length=4)",
        "--config.model.multipliers=(1,)", "--config.model.blocks=1",
        "--config.model.attention_resolutions=()",
        "--config.condition.map=silhouette", "--config.sample.guidance=classifier_free(scale=2.0)",
        f"--workdir={folder}",
    )  # fmt: skip
    assert main.main([*tiny_flags, *flags]) == 0
    return folder, (*tiny_flags, *flags)


def images_of(folder):
    (archive,) = (folder / "generated").glob("*.npz")
    with np.load(archive) as found:
        arrays = dict(found)
    archive.unlink()
    return arrays


def test_prompts_by_flag_file_and_none(text_run, tmp_path):
    folder, flags = text_run
    sample = [*flags, "--mode=sample", "--config.sample.count=4"]
    assert main.main([*sample, "--config.sample.prompt=a red square | a blue square"]) == 0
    by_flag = images_of(folder)
    assert by_flag["prompts"].tolist() == ["a red square", "a blue square"] * 2
    assert by_flag["map_images"].shape == (4, 8, 8, 3)
    file = tmp_path / "prompts.txt"
    file.write_text("a red square\na blue square\n")
    assert main.main([*sample, f"--config.sample.prompt=file:{file}"]) == 0
    np.testing.assert_array_equal(images_of(folder)["images"], by_flag["images"])
    assert main.main([*sample, "--config.sample.prompt=a red square"]) == 0
    same = images_of(folder)["images"]
    np.testing.assert_array_equal(same[::2], by_flag["images"][::2])
    assert main.main(sample) == 0  # the held-out captions
    assert set(images_of(folder)["prompts"]) <= {f"a {name} square" for name in COLOURS}


def test_a_negative_prompt_takes_the_place_of_none(text_run):
    folder, flags = text_run
    sample = [
        *flags, "--mode=sample", "--config.sample.count=2", "--config.sample.prompt=a red square",
    ]  # fmt: skip
    found = []
    for negative in ("", "a blue square", "a red square"):
        assert main.main([*sample, f"--config.sample.negative_prompt={negative}"]) == 0
        found.append(images_of(folder)["images"])
    assert not np.array_equal(found[0], found[1]) and not np.array_equal(found[1], found[2])


def test_the_negative_prompt_is_what_guidance_extrapolates_from(text_config):
    with text_config.unlocked():
        text_config.sample.negative_prompt = "a blue square"
    generator = experiment.resolve(text_config).generator
    condition = generator.conditions.batch(0, 2)
    nothing = generator.conditions.null(condition)
    wanted = generator.conditions.text(["a blue square"] * 2)
    np.testing.assert_array_equal(nothing.text.tokens, wanted.tokens)
    np.testing.assert_array_equal(nothing.text.mask, wanted.mask)
    assert not nothing.map.present.any() and condition.map.present.all()


def test_a_frozen_encoder_s_negative_prompt_is_encoded_outside_of_traces(text_config, monkeypatch):
    """An encoder computes with JAX and returns arrays of the host, which no trace can give."""

    def encode(captions):
        letters = jax.jit(lambda x: x * 2.0)(np.array([[ord(c[2])] * 8 for c in captions]))
        tokens = np.asarray(letters, np.float16)[:, None]
        return Text(tokens, np.ones((len(captions), 1), bool), np.asarray(letters, np.float32))

    texts = Texts(8, None, 1, encode, "fake")
    monkeypatch.setitem(conditions.TEXTS, "minilm", lambda: lambda captions, words: texts)
    with text_config.unlocked():
        text_config.condition.text = "minilm"
        text_config.sample.negative_prompt = "a blue square"
    setup = experiment.resolve(text_config)
    params = setup.init_state().ema_params
    assert setup.generator(params, start=0, count=2).images.shape == (2, 8, 8, 3)


def test_maps_from_files_and_in_python(text_run, squares):
    folder, flags = text_run
    assert main.main([
        *flags, "--mode=sample", "--config.sample.count=6",
        "--config.sample.prompt=a red square", f"--config.sample.maps={squares / 'test'}",
    ]) == 0  # fmt: skip
    by_files = images_of(folder)
    model = load(folder)
    by_hand = model.sample(["a red square"], map_images=by_files["map_images"])
    np.testing.assert_array_equal(by_hand, by_files["images"])
    other = model.sample(["a red square"], map_images=by_files["map_images"], seed=1)
    assert other.shape == (6, 8, 8, 3) and not np.array_equal(other, by_hand)


def test_what_a_model_has_no_use_for_is_told_in_python_too(text_run):
    model = load(text_run[0])
    with pytest.raises(UserError, match="labels = "):
        model.sample(labels=[3])
    with pytest.raises(UserError, match="map_images is"):
        model.sample(["a red square"], map_images=np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="put it in a list"):
        model.sample("a red square")
    with pytest.raises(UserError, match="of at least 1"):
        model.sample(["a red square"], count=0)
    with pytest.raises(UserError, match="seed is -1"):
        model.sample(["a red square"], seed=-1)
    with pytest.raises(UserError, match="holds no run"):
        load("NOWHERE")


def test_a_run_keeps_its_words_and_is_not_gone_on_with_by_others(
    text_run, squares, tmp_path, capsys
):
    folder, flags = text_run
    other = tmp_path / "other"
    shutil.copytree(squares, other)
    for split in ("train", "test"):
        path = other / split / "metadata.jsonl"
        path.write_text(path.read_text().replace("square", "shape"))
    shutil.copytree(folder, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["data"]["name"] = f"folder:{other}"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    prompts, maps = ["a red square", "a blue square"], np.zeros((1, 8, 8, 3), np.uint8)
    here, there = (
        load(place).sample(prompts, map_images=maps) for place in (folder, tmp_path / "run")
    )
    np.testing.assert_array_equal(here, there)
    with pytest.raises(UserError, match="nothing to condition on"):
        load(folder).sample(prompts)
    own = [flag for flag in flags if not flag.startswith(("--workdir", "--config.data.name"))]
    more = [f"--workdir={tmp_path / 'run'}", f"--config.data.name=folder:{other}"]
    assert main.main([*own, *more]) == 2
    assert "another text encoder or vocabulary" in capsys.readouterr().err


def test_a_folder_with_the_checkpoint_and_config_alone_is_loaded(text_run, tmp_path):
    folder, _ = text_run
    shutil.copytree(folder / "checkpoints", tmp_path / "alone" / "checkpoints")
    shutil.copy(folder / "config.json", tmp_path / "alone")
    maps = np.zeros((1, 8, 8, 3), np.uint8)
    here, alone = (
        load(place).sample(["a red square"], map_images=maps)
        for place in (folder, tmp_path / "alone")
    )
    np.testing.assert_array_equal(here, alone)
    model = load(tmp_path / "alone")
    given = {"prompts": ["a red square"], "map_images": maps}
    noise = model.encode(here, **given)
    assert model.decode(noise, **given).shape == here.shape
    assert np.isfinite(model.log_likelihood(here, **given, rtol=1e-2, atol=1e-2)).all()
    assert model.denoise(noise, 500, **given).x_0.shape == noise.shape


def test_an_edit_hears_its_prompt(text_run, squares, tmp_path):
    folder, flags = text_run
    file = squares / "test" / "red0.png"
    found = []
    for prompt in ("a red square", "a blue square"):
        assert main.main([
            *flags, "--mode=edit", f"--config.edit.images={file}", "--config.edit.count=2",
            "--config.edit.task=vary(strength=0.9)", f"--config.edit.prompt={prompt}",
        ]) == 0  # fmt: skip
        (archive,) = (folder / "edited").glob("*.npz")
        with np.load(archive) as arrays:
            found.append(arrays["images"])
        archive.unlink()
    np.testing.assert_array_equal(found[0][0, 0], found[1][0, 0])
    assert not np.array_equal(found[0][0, 1:], found[1][0, 1:])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data.name": "digits"}, "has no captions"),
        ({"condition.text": "bert"}, "expected one of none, minilm, clip, t5, transformer"),
        ({"condition.text": "transformer(width=9)"}, "heads must divide width"),
        ({"condition.text": "clip(folder='NOWHERE')"}, "NOWHERE"),
        ({"condition.map": "depth"}, "low_resolution, super_resolution, silhouette, edges"),
        ({"condition.map": "low_resolution(factor=1)"}, "factor must be"),
        ({"condition.text": "none", "sample.prompt": "a dog"}, "takes no text"),
        ({"condition.text": "none", "sample.negative_prompt": "a dog"}, "takes no text"),
        ({"condition.map": "none", "sample.maps": "x.png"}, "takes no map"),
        (
            {"sample.negative_prompt": "a dog", "sample.guidance": "none"},
            "ignores it",
        ),
        ({"sample.maps": "NOWHERE.png"}, "no such file"),
        ({"sample.prompt": "a |"}, "one of the prompts is empty"),
        ({"model.transformer_depth": 0}, "a whole number >= 1"),
    ],
    ids=lambda x: next(iter(x.values())) if isinstance(x, dict) else "",
)
def test_bad_conditions_are_told_in_one_line(text_config, changes, expected):
    from diffjax.experiment.schema import check

    with pytest.raises(UserError, match=expected) as caught:
        text_config.update_from_flattened_dict(changes)
        check(text_config)
        experiment.resolve(text_config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--config.edit.prompt=a | b"], "2 prompts for 1 images"),
        ([], "0 prompts for 1 images"),
    ],
)
def test_an_edit_wants_one_prompt_an_image(text_run, squares, capsys, flags, expected):
    _, common = text_run
    file = squares / "test" / "red0.png"
    assert main.main([*common, "--mode=edit", f"--config.edit.images={file}", *flags]) == 2
    assert expected in capsys.readouterr().err


def test_encoded_captions_reach_the_batch_they_belong_to(text_config):
    setup = experiment.resolve(text_config)
    batch = next(setup.batches())
    texts = setup.conditions.texts
    table = texts.encode(setup.source.captions)
    by_caption = {tuple(ids): name for ids, name in zip(table.tokens, COLOURS_SORTED, strict=True)}
    for image, ids in zip(batch["image"], batch["text_tokens"], strict=True):
        assert tuple(image[3, 3]) == COLOURS[by_caption[tuple(ids)]]


COLOURS_SORTED = sorted(COLOURS)
