"""Both stages from end to end: train, resume, evaluate, and a diffusion model on the latents."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffjax import main
from diffjax.checkpoints.store import Checkpoints
from diffjax.errors import UserError
from diffjax.evaluation import classifier_features
from diffjax.experiment import diffusion as experiment
from diffjax.experiment.autoencoder import resolve
from diffjax.experiment.load import load
from diffjax.experiment.restore import restore_params
from diffjax.images import to_model_range
from diffjax.latent.first_stage import latent_mask
from diffjax.latent.tiled_decode import decode_tiled


def test_a_first_stage_leaves_pictures_and_metrics(stage_run):
    assert {"reconstructions.png", "loss.png", "config.json"} <= {
        path.name for path in stage_run.iterdir()
    }
    rows = [json.loads(line) for line in (stage_run / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if "reconstruction" in row)
    assert {"penalty", "kl", "grad_norm", "adversarial_weight", "discriminator_loss"} <= set(last)


def test_six_steps_are_three_a_stop_and_three_bit_for_bit(make_config, stage_run, tmp_path):
    def final(folder):
        setup = resolve(make_config())
        checkpoints = Checkpoints(folder)
        found = checkpoints.restore(setup.to_stored(setup.state_shapes()))
        checkpoints.close()
        return found

    config = make_config(**{"train.steps": 3, "train.schedule": "constant"})
    main.run(config, tmp_path / "run")
    whole = make_config(**{"train.schedule": "constant"})
    main.run(whole, tmp_path / "run")
    main.run(whole, tmp_path / "other")
    a, b = final(tmp_path / "run"), final(tmp_path / "other")
    assert a.step == b.step == 6 and a.data == b.data
    for x, y in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def quick_classifier(monkeypatch):
    """Features of a classifier that has seen little; what they say is not asked here."""
    short = functools.partial(classifier_features.Recipe, steps=4, batch_size=16)
    monkeypatch.setattr(classifier_features, "Recipe", short)


def test_reconstructions_are_measured(make_config, stage_run, quick_classifier):
    assert main.run(make_config(), stage_run, mode="evaluate") == 0
    report = json.loads((stage_run / "evaluation.json").read_text())
    assert report["split"] == "test" and report["images"] == 20 and 0 < report["psnr"] < 60
    assert report["classifier_frechet_distance"] > 0 and report["ssim"] is None


def test_a_codebook_s_use_is_measured(make_config, tmp_path, quick_classifier):
    config = make_config(**{"autoencoder.regulariser": "vq(size=16)", "train.steps": 2})
    main.run(config, tmp_path / "run")
    assert main.run(config, tmp_path / "run", mode="evaluate") == 0
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert 1 / 16 <= report["codes_used"] <= 1 <= report["codebook_perplexity"] <= 16


@pytest.mark.parametrize("mode", ["sample", "edit"])
def test_an_autoencoder_draws_nothing(make_config, stage_run, mode):
    with pytest.raises(UserError, match="is for diffusion models, and this config is of an"):
        main.run(make_config(), stage_run, mode=mode)


def test_latents_are_diffused_sampled_and_edited(latent_config, stage_run, tmp_path):
    folder = tmp_path / "latent"
    assert main.run(latent_config, folder) == 0
    assert main.run(latent_config, folder, mode="sample") == 0
    archive = next((folder / "generated").glob("*.npz"))
    with np.load(archive) as found:
        assert found["images"].shape == (20, 8, 8, 1)
        drawn = found["images"]

    # Where the first stage lies may change, what it is may not.
    shutil.copytree(stage_run, tmp_path / "moved")
    model = load(folder, first_stage=tmp_path / "moved")
    np.testing.assert_array_equal(model.sample(labels=range(10), count=20), drawn)
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "6")
    with pytest.raises(UserError, match="the latents of another first stage"):
        load(folder, first_stage=tmp_path / "moved")

    # An exported model has its first stage with it.
    written = main.run(latent_config, folder, mode="export", out=tmp_path / "exported")
    assert written == 0 and (tmp_path / "exported/first_stage/model.safetensors").is_file()
    shutil.move(tmp_path / "exported", tmp_path / "elsewhere")
    np.testing.assert_array_equal(
        load(tmp_path / "elsewhere").sample(labels=range(10), count=20), drawn
    )

    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (8, 8)), np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(image.astype(np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with latent_config.unlocked():
        latent_config.edit.update(
            task="inpaint", images=str(tmp_path / "image.png"), mask=str(tmp_path / "mask.png"),
            count=2,
        )  # fmt: skip
    assert main.run(latent_config, folder, mode="edit") == 0
    with np.load(next((folder / "edited").glob("*.npz"))) as found:
        row = found["images"][0, ..., 0]
    np.testing.assert_array_equal(row[0], image)
    np.testing.assert_array_equal(row[2:, :, :4], np.stack([image[:, :4]] * 2))

    stripes = np.zeros((8, 8), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    with latent_config.unlocked():
        latent_config.edit.mask = str(tmp_path / "stripes.png")
    with pytest.raises(UserError, match="no block of pixels of a latent"):
        main.run(latent_config, folder, mode="edit")

    with latent_config.unlocked():
        latent_config.edit.update(task="colourise", mask="")
    with pytest.raises(UserError, match="needs a model of pixels"):
        main.run(latent_config, folder, mode="edit")


def test_latents_are_encoded_once(latent_config, caplog):
    caplog.set_level("INFO", logger="diffjax")
    setup = experiment.resolve(latent_config)
    first = next(setup.batches())
    encoded = [r for r in caplog.messages if "images encoded" in r or "latents read" in r]
    again = next(experiment.resolve(latent_config).batches())
    assert encoded and any("latents read" in r for r in caplog.messages)
    np.testing.assert_array_equal(first["image"], again["image"])
    images = np.stack([setup.source[i]["image"] for i in range(4)])
    direct = setup.space.stage.encode(setup.space.params, to_model_range(jnp.asarray(images)))
    source = setup.space.source(setup.source)
    np.testing.assert_allclose(source.images[:4], direct, atol=2e-2)


def test_latents_that_were_half_written_are_encoded_again(latent_config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    setup = experiment.resolve(latent_config)
    whole = setup.space.source(setup.source).images
    (kept,) = tmp_path.glob("diffjax/latents/*/image.npy")
    kept.unlink()
    np.testing.assert_array_equal(setup.space.source(setup.source).images, whole)
    kept.write_bytes(kept.read_bytes()[:-100])
    np.testing.assert_array_equal(setup.space.source(setup.source).images, whole)


def test_what_a_model_trains_on_has_unit_variance(latent_config):
    setup = experiment.resolve(latent_config)
    batch = {name: jnp.asarray(x) for name, x in next(setup.batches()).items()}
    x_0, _ = setup.space.read(batch, key=lambda name: jax.random.key(0), indices=np.arange(16))
    assert x_0.shape == (16, 4, 4, 2) and 0.6 < float(x_0.std()) < 1.5


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("first_stage.workdir", "NOWHERE", "holds no run"),
        ("first_stage.workdir", "DIFFUSION", "a run of a diffusion model"),
        ("first_stage.checkpoint", "99", "no checkpoint of step 99"),
        ("data.image_size", 16, "both stages need the same images"),
        ("data.flip", True, "latents of mirrored images"),
        ("data.augment", ("rotate90",), "trained on cached latents"),
        ("diffusion.augment", "edm", "trained on cached latents"),
    ],
)
def test_a_first_stage_that_does_not_fit(latent_config, tiny_run, tmp_path, key, value, expected):
    value = {"NOWHERE": str(tmp_path), "DIFFUSION": str(tiny_run)}.get(value, value)
    latent_config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=expected) as caught:
        experiment.resolve(latent_config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("autoencoder.regulariser", "vq(size=1)", "size must be a whole number >= 2"),
        ("autoencoder.regulariser", "kl(weight=-1)", "weight must be a number >= 0"),
        ("autoencoder.regulariser", "gan", "expected one of kl, vq"),
        ("loss.adversarial", "patch(layers=3)", "needs images of at least 16 pixels"),
        ("loss.perceptual", "vgg16", "16"),
        ("loss.reconstruction", "huber", "expected one of l1, l2"),
        ("loss.adversarial_start", -1, "a whole number >= 0"),
    ],
)
def test_first_stages_that_can_not_be(make_config, key, value, expected):
    with pytest.raises(UserError, match=expected) as caught:
        main.run(make_config(**{key: value}), Path("unused"))
    assert "\n" not in str(caught.value)


def test_tiles_of_a_local_decoder_are_the_whole():
    """Where a pixel depends on its latent alone, tiles and their blending change nothing."""
    z = jax.random.normal(jax.random.key(0), (2, 11, 7, 3))

    def decode(z):
        return jax.numpy.repeat(jax.numpy.repeat(z, 2, 1), 2, 2) ** 2

    whole = decode(z)[:, :21, :13]
    for tile in (4, 5, 20):
        tiled = decode_tiled(decode, z, size=(21, 13), tile=tile, factor=2)
        np.testing.assert_allclose(tiled, whole, rtol=1e-5)
    with pytest.raises(ValueError, match="overlap"):
        decode_tiled(decode, z, size=(22, 14), tile=4, factor=2, overlap=4)


def test_sampling_in_tiles_is_by_config(latent_config, tmp_path):
    whole = experiment.resolve(latent_config)
    with latent_config.unlocked():
        latent_config.first_stage.tile = 3
    tiled = experiment.resolve(latent_config)
    z = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    a, b = (np.asarray(setup.space.to_images(z)) for setup in (whole, tiled))
    assert a.shape == b.shape == (1, 8, 8, 1) and np.abs(a - b).max() > 0


def test_a_latent_is_kept_where_all_of_its_pixels_are():
    mask = np.ones((7, 8, 1), np.float32)
    mask[6, 7] = 0
    mask[0, 1] = 0
    kept = np.asarray(latent_mask(mask, latent_shape=(4, 4, 2), factor=2))[..., 0]
    assert kept.shape == (4, 4) and np.argwhere(kept == 0).tolist() == [[0, 0], [3, 3]]


def test_the_best_first_stage_can_be_named(latent_config, stage_run):
    with latent_config.unlocked():
        latent_config.first_stage.checkpoint = "3"
    early = experiment.resolve(latent_config).space.params
    late = restore_params(resolve(loop_config(stage_run)), stage_run)[1]
    kernels = [np.asarray(f.params["decoder"]["head"]["kernel"]) for f in (early, late)]
    assert not np.array_equal(*kernels)


def loop_config(folder):
    from ml_collections import ConfigDict

    return ConfigDict(
        {
            key: {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}
            if isinstance(part, dict) else part
            for key, part in json.loads((folder / "config.json").read_text()).items()
        }
    )  # fmt: skip


@pytest.mark.slow
def test_it_is_exported_for_diffusers_if_it_was_trained_so(make_config, stage_run, tmp_path):
    config = make_config()
    with pytest.raises(UserError, match=r"train with config\.autoencoder\.layout=diffusers"):
        main.run(config, stage_run, "export", False, tmp_path / "out", "diffusers")
    changes = {"autoencoder.layout": "diffusers", "autoencoder.patch": 1, "train.steps": 1}
    config = make_config(**changes)
    main.run(config, tmp_path / "run")
    assert main.run(config, tmp_path / "run", "export", False, tmp_path / "out", "diffusers") == 0
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["_class_name"] == "AutoencoderKL" and about["scaling_factor"] > 0
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").stat().st_size > 10_000
