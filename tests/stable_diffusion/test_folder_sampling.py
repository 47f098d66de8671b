"""LoRA files, ControlNets, long and weighted prompts by config, against `diffjax.load`'s."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import diffjax
from diffjax.errors import UserError
from diffjax.experiment import folder_sampling, model_folder, plan_sampling
from diffjax.main import run
from diffjax.perceptual import EmbeddingNetwork
from tests.stable_diffusion.test_config import config_of

LONG = "a (red cat:1.4) on a dog " * 12


@pytest.fixture(scope="module")
def added(tiny, folders, tmp_path_factory):
    """The folder, and files that are added to it: ControlNet, its image, LoRA."""
    import diffusers

    folder, pipeline = folders("sd15")
    place = tmp_path_factory.mktemp("added")
    theirs = diffusers.ControlNetModel.from_unet(
        pipeline.unet, conditioning_embedding_out_channels=(8, 16)
    )
    tiny.randomise(theirs, 7).save_pretrained(place / "control")
    drawn = np.random.default_rng(0)
    pixels = drawn.integers(0, 256, (2, 16, 16, 3), np.uint8)
    (place / "images").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(place / "images" / f"{number}.png")
    factors = {}
    for name, width in (("unet.down_blocks.0.attentions.0.proj_in", 32),
                        ("text_encoder.encoder.layers.1.self_attn.q_proj", 32)):  # fmt: skip
        factors[f"{name}.lora_A.weight"] = drawn.normal(size=(2, width)).astype(np.float32)
        factors[f"{name}.lora_B.weight"] = drawn.normal(size=(32, 2)).astype(np.float32)
    save_file(factors, place / "lora.safetensors")
    return folder, place, pixels


def arguments(place, **changes):
    given = {
        "sample__lora": f"{place / 'lora.safetensors'}@0.5",
        "sample__control": f"{place / 'control'}@0.7",
        "sample__control_images": str(place / "images"), "sample__long_prompts": "chunks",
        "sample__prompt_weights": "scale_keep_mean", "sample__steps": 2, "sample__count": 2,
        "sample__batch_size": 2,
    }  # fmt: skip
    return given | changes


def archive_of(folder):
    (path,) = folder.glob("*.npz")
    with np.load(path) as found:
        return found["images"]


def loaded(folder, place):
    return diffjax.load(
        folder, lora=(place / "lora.safetensors", 0.5), control=place / "control",
        long_prompts="chunks", prompt_weights="scale_keep_mean",
    )  # fmt: skip


def test_samples_are_those_of_load(added, tmp_path):
    folder, place, pixels = added
    config = config_of(
        folder, **arguments(place, sample__prompt=f"{LONG}|cat", sample__format="npz,png")
    )
    assert run(config, tmp_path, mode="sample") == 0
    images = archive_of(tmp_path / "generated")
    model = loaded(folder, place)
    how = {"steps": 2, "batch_size": 2, "control_images": pixels}
    expected = model.sample([LONG, "cat"], control_scale=0.7, **how)
    np.testing.assert_array_equal(images, expected)
    assert (images != model.sample([LONG, "cat"], control_scale=0.0, **how)).any()
    # A single image tells what it was made of.
    picture = min((tmp_path / "generated").glob("*/*.png"))
    about = json.loads(Image.open(picture).text["diffjax"])
    assert about["lora"].endswith("@0.5") and about["long_prompts"] == "chunks"
    assert len(about["control_crc32"]) == len(about["lora_crc32"]) == 1


@pytest.mark.slow
def test_edits_are_those_of_load(added, tmp_path):
    folder, place, pixels = added
    changes = {
        "edit__task": "vary(strength=0.7)", "edit__prompt": LONG, "edit__count": 1,
        "edit__images": str(place / "images"),
    }  # fmt: skip
    assert run(config_of(folder, **arguments(place, **changes)), tmp_path, mode="edit") == 0
    expected = loaded(folder, place).edit(
        pixels, "vary(strength=0.7)", prompts=[LONG], count=1, steps=2, control_images=pixels,
        control_scale=0.7,
    )  # fmt: skip
    np.testing.assert_array_equal(archive_of(tmp_path / "edited"), expected)


def test_a_plan_counts_the_controlnet(added):
    folder, place, _ = added
    changes = {"parallel__compile": False, "sample__long_prompts": "cut"}

    def plan(**more):
        config = model_folder.settled(config_of(folder, **arguments(place, **changes | more)))
        return plan_sampling.plan_here(config)

    with_it, without = plan(), plan(sample__control="", sample__control_images="")
    import safetensors

    with safetensors.safe_open(
        place / "control/diffusion_pytorch_model.safetensors", "numpy"
    ) as file:
        size = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    assert with_it.network - without.network == size and with_it.flops > 1.1 * without.flops


@pytest.mark.parametrize(
    ("changes", "message", "mode"),
    (
        ({"sample__lora": "/no/such"}, "/no/such", "sample"),
        ({"sample__lora": "a@b"}, r"config\.sample\.lora = 'a@b': 'b' is no scale", "sample"),
        ({"sample__lora": "a|"}, r"config\.sample\.lora = 'a\|': one of the paths is", "sample"),
        ({"sample__control": ""}, r"control_images = .* and there is no ControlNet", "sample"),
        ({"sample__control": "/no/such"}, "/no/such", "sample"),
        ({"sample__control_images": ""}, r"for each of the 1 ControlNets", "sample"),
        ({"sample__control_images": "/no"}, r"config\.sample\.control_images = '/no'", "sample"),
        ({"sample__prompt": "(cat"}, r"\(cat", "sample"),
        ({"sample__long_prompts": "all"}, r"'cut', 'refuse' or 'chunks'", "sample"),
        ({"sample__lora": ""}, r"config\.sample\.control = .* has no effect on --mode", "export"),
    ),
)  # fmt: skip
def test_wrong_values(added, tmp_path, changes, message, mode):
    folder, place, _ = added
    given = arguments(place, sample__prompt="cat") | changes
    out = {"out": tmp_path / "out"} if mode == "export" else {}
    with pytest.raises(UserError, match=message) as error:
        run(config_of(folder, **given), tmp_path / "run", mode=mode, **out)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "generated").exists() and not (tmp_path / "out").exists()


def test_training_and_plans_refuse_what_has_no_effect(added):
    folder, place, _ = added
    config = config_of(folder, sample__lora="a.safetensors")
    with pytest.raises(UserError, match=r"config\.sample\.lora .* no effect on training"):
        folder_sampling.refuse(config, "training")
    folder_sampling.refuse(config_of(folder), "training")
    config = model_folder.settled(config_of(folder, **arguments(place)))
    with pytest.raises(UserError, match=r"long_prompts = 'chunks' has no effect on --mode=plan"):
        plan_sampling.plan_here(config)


OWN = EmbeddingNetwork("own", (), lambda params, x: x.mean((1, 2)), 3, "own")


def frechet(a, b):
    from scipy.linalg import sqrtm

    means, covariances = zip(*((x.mean(0), np.cov(x.T)) for x in (a, b)), strict=True)
    root = sqrtm(covariances[0] @ covariances[1]).real
    return ((means[0] - means[1]) ** 2).sum() + np.trace(sum(covariances) - 2 * root)


@pytest.mark.slow
def test_distances_of_a_folder_without_a_run(added, tmp_path, monkeypatch):
    folder, place, _ = added
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), np.uint8)
    rows = []
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(pictures / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": "a cat"})
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = {
        "data__name": f"folder:{pictures}", "evaluate__num_samples": 8, "sample__steps": 2,
        "evaluate__features": f"{__name__}:OWN", "sample__batch_size": 8,
        "sample__lora": f"{place / 'lora.safetensors'}@0.5",
    }  # fmt: skip
    config = config_of(folder, **changes)
    assert run(config, tmp_path / "run", mode="evaluate") == 0
    report = json.loads((tmp_path / "run/evaluation.json").read_text())
    drawn = diffjax.load(folder, lora=(place / "lora.safetensors", 0.5)).sample(
        ["a cat"], count=8, batch_size=8, steps=2
    )
    features = [(x / 127.5 - 1).mean((1, 2)) for x in (drawn, pixels)]
    np.testing.assert_allclose(report["frechet_distance"], frechet(*features), rtol=1e-3)
    assert report["step"] == 0
    config.evaluate.likelihood = "ode"
    with pytest.raises(UserError, match=r"likelihood = 'ode' is not supported for a model of tex"):
        run(config, tmp_path / "run", mode="evaluate")
