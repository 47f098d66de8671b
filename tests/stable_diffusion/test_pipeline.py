"""Whole pipelines against diffusers', from the same noise; sizes, edits and broken folders."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest

import diffjax
from diffjax.errors import UserError
from diffjax.inference.sample_conditions import Choice

PROMPTS = ["a red cat", "dog on a cat"]
STEPS = 5


@pytest.fixture(scope="module")
def loaded(folders):
    made = {}

    def of(family):
        if family not in made:
            made[family] = diffjax.load(folders(family)[0])
        return made[family]

    return of


def ours(model, prompts=PROMPTS, *, seed=3, size=None, **how):
    """x_T and x_0 of samples, with the first noise as diffusers takes it."""
    model = model if size is None else model.at_size(*size)
    generator = model.generator(steps=STEPS, **how).of(Choice(prompts=tuple(prompts)), seed=seed)
    indices = np.arange(len(prompts))
    eps, _ = generator.noise(indices)
    cond = generator.conditions.batch(0, len(prompts))
    # The program that `model.sample` runs, compiled once for both.
    run = generator._compile(len(prompts), False)
    x_0 = run(model.params, indices, cond, None, np.uint32(seed)).x_0
    return np.asarray(eps * np.float32(generator.sampling.grid.noise_scale[0])), np.asarray(x_0)


def theirs(tiny, pipeline, x_T, prompts=PROMPTS, **options):
    import torch

    with torch.no_grad():
        made = pipeline(
            prompts, latents=tiny.nchw(x_T), num_inference_steps=STEPS, output_type="latent",
            **options,
        )  # fmt: skip
    return tiny.nhwc(made.images)


@pytest.mark.parametrize("family", ("sd15", "sd21", "sdxl"))
def test_a_trajectory_is_diffusers(tiny, folders, loaded, family):
    _, pipeline = folders(family)
    scale = 5.0 if family == "sdxl" else 7.5
    x_T, x_0 = ours(loaded(family))
    expected = theirs(tiny, pipeline, x_T, guidance_scale=scale)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(x_0, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ("sd15", "sdxl"))
def test_another_size_with_a_negative_prompt(tiny, folders, loaded, family):
    _, pipeline = folders(family)
    size = {"height": 24, "width": 32}
    negative = {"negative_prompt": ["red dog"] * 2}
    how = {"guidance": "classifier_free(scale=3.0)", "negative_prompt": "red dog"}
    x_T, x_0 = ours(loaded(family), size=(24, 32), **how)
    assert x_T.shape == (2, 12, 16, 4)
    expected = theirs(tiny, pipeline, x_T, guidance_scale=3.0, **size, **negative)
    np.testing.assert_allclose(x_0, expected, atol=1e-4, rtol=1e-4)


def test_images_are_diffusers(tiny, folders, loaded):
    import torch

    _, pipeline = folders("sd15")
    model = loaded("sd15")
    x_T, _ = ours(model)
    with torch.no_grad():
        expected = pipeline(
            PROMPTS, latents=tiny.nchw(x_T), num_inference_steps=STEPS, output_type="np",
            guidance_scale=7.5,
        ).images  # fmt: skip
    found = model.sample(PROMPTS, steps=STEPS, seed=3)
    assert found.shape == (2, 16, 16, 3) and found.dtype == np.uint8 and np.ptp(found) > 100
    assert np.abs(found - 255.0 * expected).max() <= 1.0


@pytest.mark.slow
def test_every_kind_of_sampler_grid_and_guidance(loaded):
    model = loaded("sd15")
    default = model.sample(PROMPTS[:1], steps=STEPS)
    for how in (
        {"sampler": "dpm_solver_pp_2m", "grid": "karras"},
        {"sampler": "euler_ancestral", "grid": "trailing", "threshold": "dynamic"},
        {"guidance": "classifier_free(scale=4.0, rescale=0.7)"},
        {"guidance": "perturbed_attention(scale=2.0)"},
    ):
        drawn = model.sample(PROMPTS[:1], steps=STEPS, **how)
        assert drawn.shape == default.shape and (drawn != default).any(), how


def img2img(pipeline, strength, images, noise, monkeypatch):
    """diffusers' image-to-image of latents with a given noise."""
    import diffusers
    import torch
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as module

    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise)
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components)
    other.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return other(
            "a red cat", image=images, strength=strength, num_inference_steps=STEPS,
            guidance_scale=7.5, output_type="np",
        ).images  # fmt: skip


def test_image_to_image_is_diffusers(tiny, folders, loaded, monkeypatch):
    _, pipeline = folders("sd15")
    model = loaded("sd15")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 16, 16, 3), np.uint8)
    rows = model.edit(
        images, "vary(strength=0.6)", prompts=["a red cat"], count=1, seed=4, steps=STEPS
    )
    assert rows.shape == (1, 2, 16, 16, 3)
    np.testing.assert_array_equal(rows[:, 0], images)
    latents = model.space.of_images(images / np.float32(127.5) - 1)
    eps, _ = model.generator(steps=STEPS).of(seed=4).noise(np.arange(1))
    expected = img2img(
        pipeline, 0.6, tiny.nchw(np.asarray(latents)), tiny.nchw(np.asarray(eps)), monkeypatch
    )
    assert np.abs(rows[0, 1] - 255.0 * expected[0]).max() <= 1.0


@pytest.mark.parametrize(
    "family", ("sd15_inpaint", pytest.param("sdxl_inpaint", marks=pytest.mark.slow))
)
def test_inpainting_is_diffusers(tiny, folders, loaded, family):
    import torch
    from PIL import Image

    _, pipeline = folders(family)
    model = loaded(family)
    no_check = {} if family.startswith("sdxl") else {"requires_safety_checker": False}
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 16, 16, 3), np.uint8)
    known = np.ones((16, 16), bool)
    known[4:12, 6:14] = False
    how = {"steps": STEPS, "guidance": "classifier_free(scale=3.0)"}
    rows = model.edit(images, "inpaint", mask=known, prompts=["a red cat"], count=1, seed=4, **how)
    generator = model.generator(**how).of(seed=4)
    eps, _ = generator.noise(np.arange(1))
    x_T = np.asarray(eps * np.float32(generator.sampling.grid.noise_scale[0]))
    # Its encoder's latents are samples: the mean is had by taking away the variance.
    other = type(pipeline)(**pipeline.components | {"vae": copy.deepcopy(pipeline.vae)}, **no_check)
    other.set_progress_bar_config(disable=True)
    with torch.no_grad():
        other.vae.quant_conv.weight[4:] = 0
        other.vae.quant_conv.bias[4:] = -60.0
        expected = other(
            "a red cat", image=Image.fromarray(images[0]),
            mask_image=Image.fromarray(np.where(known, 0, 255).astype(np.uint8)),
            latents=tiny.nchw(x_T), num_inference_steps=STEPS, guidance_scale=3.0, height=16,
            width=16, output_type="np", strength=1.0,
        ).images  # fmt: skip
    drawn = rows[0, 2]
    np.testing.assert_array_equal(drawn[known], images[0][known])
    assert np.abs(drawn - 255.0 * expected[0])[~known].max() <= 1.0
    # The mask, and what is known, are heard.
    other = model.edit(255 - images, "inpaint", mask=known, prompts=["a red cat"], count=1, seed=4,
                       **how)  # fmt: skip
    assert (other[0, 2] != drawn)[~known].any()


def test_an_inpainting_network_draws_whole_images_too(loaded):
    assert loaded("sd15_inpaint").sample(PROMPTS[:1], steps=2).shape == (1, 16, 16, 3)


def test_inpainting_without_such_a_network_keeps_the_known_pixels(loaded):
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    known = np.arange(16)[:, None] < np.full(16, 8)
    drawn = loaded("sd21").edit(
        images, "inpaint", mask=known, prompts=["a cat"], count=1, steps=STEPS
    )[0, 2]
    np.testing.assert_array_equal(drawn[known], images[0][known])
    assert (drawn != images[0])[~known].any()


def inpainted_by_diffusers(tiny, parts, images, known, x_T):
    """diffusers' inpainting of the prompt "a red cat", with the means of its encoder's latents."""
    import diffusers
    import torch
    from PIL import Image

    parts = parts | {"vae": copy.deepcopy(parts["vae"])}
    other = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with torch.no_grad():
        parts["vae"].quant_conv.weight[4:] = 0
        parts["vae"].quant_conv.bias[4:] = -60.0
        return other(
            "a red cat", image=Image.fromarray(images[0]),
            mask_image=Image.fromarray(np.where(known, 0, 255).astype(np.uint8)),
            latents=tiny.nchw(x_T), num_inference_steps=STEPS, guidance_scale=3.0, height=16,
            width=16, output_type="np", strength=1.0,
        ).images  # fmt: skip


@pytest.mark.parametrize("has_signal", (False, pytest.param(True, marks=pytest.mark.slow)))
def test_inpainting_by_replacement_is_diffusers(tiny, folders, tmp_path, has_signal):
    """Exactly, where x_T has no signal; else diffusers draws new noise for what is known, and here
    its noise is what x_T has besides the signal."""
    folder, pipeline = folders("sd21")
    if not has_signal:
        folder = shutil.copytree(folder, tmp_path / "copy")
        theirs = tiny.scheduler("sd21", rescale_betas_zero_snr=True, timestep_spacing="trailing")
        theirs.save_pretrained(folder / "scheduler")
    else:
        theirs = pipeline.scheduler
    model = diffjax.load(folder)
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    known = np.ones((16, 16), bool)
    known[4:12, 6:14] = False
    how = {"steps": STEPS, "guidance": "classifier_free(scale=3.0)"}
    rows = model.edit(images, "inpaint", mask=known, prompts=["a red cat"], count=1, seed=4, **how)
    generator = model.generator(**how).of(seed=4)
    x_T = np.asarray(generator.noise(np.arange(1))[0] * generator.sampling.grid.noise_scale[0])
    parts = pipeline.components | {"scheduler": theirs}
    expected = inpainted_by_diffusers(tiny, parts, images, known, x_T)
    drawn = rows[0, 2]
    np.testing.assert_array_equal(drawn[known], images[0][known])
    difference = np.abs(drawn - 255.0 * expected[0])[~known]
    assert difference.max() <= (16.0 if has_signal else 1.0)
    assert np.ptp(drawn[~known]) > 50


@pytest.mark.slow
def test_half_precision(folders, loaded):
    model = diffjax.load(folders("sd15")[0], dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"bfloat16"}
    how = {"steps": STEPS, "guidance": "none", "seed": 1}
    drawn = model.sample(PROMPTS[:1], **how).astype(float)
    wide = loaded("sd15").sample(PROMPTS[:1], **how)
    assert 0 < np.abs(drawn - wide).mean() < 12


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda m: m.sample(), "give prompts"),
        (
            lambda m: m.sample(["a"], height=15),
            "height is 15: expected a multiple of 2, such as 14",
        ),
        (lambda m: m.sample(["a"], width=0), "width is 0"),
        (lambda m: m.sample(["a"], sampler="magic"), "magic"),
        (lambda m: m.sample(["a"], sparkle=1), "sparkle is not a setting"),
        (lambda m: m.sample(["a"], steps=1000), "sample.grid"),
        (lambda m: m.sample(["a"], labels=[1]), "not class-conditional"),
        (lambda m: m.edit(np.zeros((1, 16, 16), np.uint8), "vary"), "expected uint8 images"),
        (lambda m: m.edit(np.zeros((1, 16, 16, 3), np.uint8), "vary"), "vary needs prompts"),
        (
            lambda m: m.edit(np.zeros((1, 16, 15, 3), np.uint8), "vary", prompts=["a"]),
            "width is 15",
        ),
    ),
)
def test_wrong_arguments(loaded, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(loaded("sd15"))
    assert "\n" not in str(error.value)


@pytest.fixture
def copied(folders, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(folders("sd15")[0], folder)
    return folder


def edit_json(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "-"}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    (
        (lambda f: shutil.rmtree(f / "vae"), "found no folder .*vae"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "found no folder .*tokenizer"),
        (lambda f: (f / "unet/config.json").unlink(), r"found no config\.json in .*unet"),
        (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
         r"found no diffusion_pytorch_model\.safetensors"),
        (lambda f: (f / "tokenizer/merges.txt").unlink(), r"vocab\.json and merges\.txt"),
        (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "scheduler_config"),
        (lambda f: edit_json(f / "scheduler/scheduler_config.json", _class_name="MagicScheduler"),
         "MagicScheduler"),
        (lambda f: edit_json(f / "model_index.json", _class_name="FluxPipeline"), "FluxPipeline"),
        (lambda f: edit_json(f / "model_index.json", unet="-"), "unet=None"),
        (lambda f: edit_json(f / "model_index.json", image_encoder=["transformers", "Clip"]),
         "image_encoder="),
        (lambda f: (f / "model_index.json").write_text("{"), r"cannot read .*model_index\.json"),
        (lambda f: edit_json(f / "unet/config.json", cross_attention_dim=64),
         "found 64 features a token .* and 32 in the other parts"),
        (lambda f: edit_json(f / "unet/config.json", out_channels=3, in_channels=3),
         "found 3 latent channels"),
    ),
)  # fmt: skip
def test_a_broken_folder(copied, break_it, message):
    break_it(copied)
    with pytest.raises(UserError, match=message) as error:
        diffjax.load(copied)
    assert "\n" not in str(error.value)


def test_arguments_of_load_that_are_of_runs_or_of_folders(folders, tmp_path):
    folder = folders("sd15")[0]
    with pytest.raises(UserError, match="leave out checkpoint"):
        diffjax.load(folder, checkpoint=100)
    with pytest.raises(UserError, match="dtype is 'int8': expected float32 or bfloat16"):
        diffjax.load(folder, dtype="int8")
    with pytest.raises(UserError, match="dtype is 'bfloat16': it is of Stable Diffusion's"):
        diffjax.load(tmp_path, dtype="bfloat16")
