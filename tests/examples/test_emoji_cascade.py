"""examples/emoji/cascade.py: both stages trained, and the cascade sampled and evaluated."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax import data
from diffjax.conditioning.conditions import Texts
from diffjax.conditioning.super_resolution import super_resolution
from diffjax.data.info import DataInfo
from diffjax.experiment import augmentation, conditioning, network, schema
from diffjax.experiment.model import resolve_model
from diffjax.figures import to_uint8
from diffjax.images import to_model_range
from diffjax.main import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "emoji"
SMALL = (
    "--config.train.steps=4", "--config.train.batch_size=16", "--config.train.warmup_steps=2",
    # Four steps at the config's rate leave a prediction of x_0 at grey, whatever the text.
    "--config.train.learning_rate=0.02",
    "--config.train.log_every=2", "--config.train.eval_every=4",
    "--config.train.checkpoint_every=4", "--config.train.sample_every=100",
    "--config.sample.count=6", "--config.sample.batch_size=6",
    "--config.condition.text=transformer(width=8, heads=2, layers=1, length=8)",
    "--config.model.channels=8", "--config.model.head_channels=8", "--config.model.patch=1",
    "--config.model.attention_resolutions=()", "--config.sample.steps=3",
)  # fmt: skip
STAGES = {
    "base-tiny": ("--config.data.image_size=2", "--config.model.multipliers=(1,)"),
    "upsampler-tiny": ("--config.data.image_size=8", "--config.data.augment=('window(size=4)',)"),
}


@pytest.fixture(scope="module")
def stages(pictures, own_caches, compile_quickly):
    """The workdirs of both stages, trained for four steps."""
    root = pictures.parent
    for name, more in STAGES.items():
        arguments = [
            f"--config={EXAMPLE / 'cascade.py'}:{name}", f"--workdir={root / name}",
            f"--config.data.dir={pictures}", *SMALL, *more,
        ]  # fmt: skip
        assert main(arguments) == 0
    return tuple(str(root / name) for name in STAGES)


def test_the_cascade_draws_and_measures_held_out_captions(stages, tmp_path, capsys):
    cascade = [
        f"--config={EXAMPLE / 'cascade.py'}:tiny", f"--workdir={tmp_path / 'cascade'}",
        f"--config.cascade.stages={stages}", "--config.sample.count=4",
        "--config.sample.batch_size=4",
    ]  # fmt: skip
    assert main([*cascade, "--mode=sample"]) == 0
    (archive,) = (tmp_path / "cascade/generated").glob("*.npz")
    with np.load(archive) as arrays:
        found = dict(arrays)
    assert found["images"].shape == (4, 8, 8, 3) and found["stage_1"].shape == (4, 2, 2, 3)
    assert all("dark skin tone" in prompt for prompt in found["prompts"])
    by_hand = diffjax.cascade(stages, settings=[{}, {"augmentation_level": 0.1}])
    np.testing.assert_array_equal(by_hand.sample(found["prompts"].tolist()), found["images"])
    # Three columns: both stages, and the held-out picture of the caption.
    (picture,) = (tmp_path / "cascade/generated").glob("*_stages.png")
    held_out = np.asarray(Image.open(picture))[:, -98:-2]
    assert (held_out == 255).all(-1).any() and (held_out < 255).any()

    negative = "--config.sample.negative_prompt=raised fist, google style"
    assert main([*cascade, "--mode=sample", negative]) == 0
    with np.load(next((tmp_path / "cascade/generated").glob("*not_raised*.npz"))) as arrays:
        assert (arrays["images"] != found["images"]).any()


@pytest.mark.parametrize("tiny", ["", "-tiny"])
def test_the_shipped_stages_fit(tiny, monkeypatch):
    """Networks and maps of both stages at their sizes, and of windows of the upsampler's."""
    texts = Texts(384, None, 24, lambda captions: None, "minilm")
    monkeypatch.setitem(conditioning.TEXTS, "minilm", lambda length: lambda captions, words: texts)
    get_config = runpy.run_path(str(EXAMPLE / "cascade.py"))["get_config"]
    shapes = {}
    for stage, size in (("base", 16), ("upsampler", 64)):
        config = schema.complete(get_config(stage + tiny))
        schema.check(config)
        model = resolve_model(config, DataInfo("", (size, size, 3), has_captions=True))
        assert sum(np.prod(x.shape) for x in jax.tree.leaves(model.parameter_shapes())) > 1e6
        make = model.conditions.make_map
        shapes[stage] = (size, make and size // make.factor, config.data.image_size)
        if config.data.augment:
            assert augmentation.trained_shape(config, (size, size, 3)) == (32, 32, 3)
            network.check(
                model.network, config=config, diffusion=model.diffusion, shape=(32, 32, 3),
                cond=model.example_condition((32, 32, 3)),
            )  # fmt: skip
    assert shapes == {"base": (16, None, 16), "upsampler": (64, 16, 64)}
    whole = schema.complete(get_config(tiny.removeprefix("-")))
    schema.check(whole)
    assert [name.partition(":")[2] for name in whole.cascade.configs] == [
        f"base{tiny}", f"upsampler{tiny}"
    ]  # fmt: skip


def test_training_the_cascade_names_the_commands(tmp_path, capsys):
    config = f"--config={EXAMPLE / 'cascade.py'}:tiny"
    assert main([config, f"--workdir={tmp_path / 'new'}"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "cascade.py:base-tiny; python" in line
    assert main([config, "--mode=config"]) == 0
    assert "config.cascade.augmentation_level = (None, 0.1)" in capsys.readouterr().out


def test_the_bases_images_are_the_upsamplers_low_resolution_images(tmp_path):
    """Up to the rounding of Pillow, which resizes in 8 bits one axis after the other."""
    (tmp_path / "train").mkdir()
    smooth = np.random.default_rng(0).normal(size=(4, 9, 9, 3)).cumsum(1).cumsum(2)
    for i, image in enumerate(smooth):
        image = 255 * (image - image.min()) / np.ptp(image)
        enlarged = Image.fromarray(image.astype(np.uint8)).resize((64, 64), Image.BICUBIC)
        enlarged.save(tmp_path / f"train/{i}.png")
    large, small = (
        np.stack([source[i]["image"] for i in range(4)])
        for source in (
            data.load(f"folder:{tmp_path}", split="train", image_size=size) for size in (64, 16)
        )
    )
    make = super_resolution(factor=4, downsample="bicubic")
    found = to_uint8(np.asarray(make.low_resolution(to_model_range(jnp.asarray(large)))))
    assert np.abs(found.astype(int) - small).max() <= 2
