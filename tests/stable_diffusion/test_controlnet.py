"""ControlNets against diffusers': what they add, the U-Net's output with it, whole pipelines."""

import numpy as np
import pytest

import diffjax
from diffjax.inference.sample_conditions import Choice
from diffjax.models.condition import Condition, Control, Text
from diffjax.models.controlnet import ControlledNetwork
from diffjax.stable_diffusion import controlnet, unet


def made(tiny, pipeline, seed, **config):
    """diffusers' ControlNet of a pipeline's U-Net, with random weights, the zero ones included."""
    import diffusers

    options = {"conditioning_embedding_out_channels": (8, 16), **config}
    theirs = diffusers.ControlNetModel.from_unet(pipeline.unet, **options)
    return tiny.randomise(theirs, seed)


@pytest.fixture(scope="module")
def controls(tiny, folders, tmp_path_factory):
    """(family, seed) -> (folder of a ControlNet, diffusers' network)."""
    kept = {}

    def of(family, seed=7):
        if (family, seed) not in kept:
            folder = tmp_path_factory.mktemp("control") / f"{family}-{seed}"
            theirs = made(tiny, folders(family)[1], seed)
            theirs.save_pretrained(folder)
            kept[family, seed] = folder, theirs
        return kept[family, seed]

    return of


@pytest.mark.parametrize(
    "family", ("sd15", pytest.param("sd21", marks=pytest.mark.slow), "sdxl")
)  # fmt: skip
def test_it_is_diffusers_controlnet(tiny, folders, controls, family):
    import torch

    folder, pipeline = folders(family)
    where, theirs = controls(family)
    ours = unet.read(folder / "unet")
    params = unet.load(ours, folder / "unet")
    control = controlnet.load(where, ours.module, factor=2)
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((2, 8, 6, 4), np.float32), np.array([17.0, 981.0], np.float32)
    image = rng.random((2, 16, 12, 3), np.float32)
    tokens = rng.standard_normal((2, 9, ours.module.text_width), np.float32)
    pooled = sizes = added = None
    if family == "sdxl":
        pooled = rng.standard_normal((2, 32), np.float32)
        sizes = np.array([[512, 384, 0, 16, 256, 256]] * 2, np.float32)
        added = {"text_embeds": torch.tensor(pooled), "time_ids": torch.tensor(sizes)}
    common = {
        "encoder_hidden_states": torch.tensor(tokens), "added_cond_kwargs": added,
        "return_dict": False,
    }  # fmt: skip
    with torch.no_grad():
        down, middle = theirs(
            tiny.nchw(x), torch.tensor(t), controlnet_cond=tiny.nchw(image),
            conditioning_scale=0.7, **common,
        )  # fmt: skip
        expected, without = (
            tiny.nhwc(pipeline.unet(tiny.nchw(x), torch.tensor(t), **common, **more)[0])
            for more in (
                {"down_block_additional_residuals": down, "mid_block_additional_residual": middle},
                {},
            )
        )
    condition = Condition(
        text=Text(tokens, None, pooled), augmentation=sizes,
        control=Control((image,), np.full((2, 1), 0.7, np.float32)),
    )  # fmt: skip
    found = control.module.apply({"params": control.params}, x, t, condition, image)
    for one, other in zip((*found.skips, found.middle), (*down, middle), strict=True):
        assert np.abs(other.numpy()).max() > 0.1
        np.testing.assert_allclose(0.7 * one, tiny.nhwc(other), atol=1e-5, rtol=1e-5)
    network = ControlledNetwork(ours.module, (control.module,))
    both = {"unet": params, "controls": (control.params,)}
    result = network.apply(both, x, t, condition)
    assert np.abs(expected - without).max() > 0.1
    np.testing.assert_allclose(result, expected, atol=1e-5, rtol=1e-5)


PROMPTS = ["a red cat", "dog on a cat"]
STEPS = 5


def images(count, size=(16, 16), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


@pytest.fixture(scope="module")
def loaded(folders, controls):
    kept = {}

    def of(family, *seeds):
        if (family, seeds) not in kept:
            where = [controls(family, seed)[0] for seed in seeds]
            kept[family, seeds] = diffjax.load(folders(family)[0], control=where)
        return kept[family, seeds]

    return of


def first_noise(model, count, seed, **how):
    generator = model.generator(**how).of(seed=seed)
    eps, _ = generator.noise(np.arange(count))
    return np.asarray(eps * np.float32(generator.sampling.grid.noise_scale[0]))


def trajectory(model, given, *, scale, seed=3, **how):
    """x_0 of samples before they are decoded."""
    choice = Choice(prompts=tuple(PROMPTS))
    generator = model.with_control(given, scale).generator(**how).of(choice, seed=seed)
    cond = generator.conditions.batch(0, 2)
    run = generator._compile(2, False)  # the program that `model.sample` runs
    return np.asarray(run(model.params, np.arange(2), cond, None, np.uint32(seed)).x_0)


@pytest.mark.parametrize(
    ("family", "seeds"),
    (("sd15", (7, 8)), pytest.param("sdxl", (7,), marks=pytest.mark.slow)),
)
def test_a_trajectory_is_diffusers(tiny, folders, controls, loaded, family, seeds):
    import diffusers
    import torch

    _, pipeline = folders(family)
    model = loaded(family, *seeds)
    how = {"steps": STEPS, "guidance": "classifier_free(scale=3.0)"}
    given, scales = [images(2, seed=seed) for seed in seeds], [0.7, 0.4][: len(seeds)]
    x_0 = trajectory(model, given, scale=scales, **how)
    kind = "StableDiffusionXLControlNetPipeline" if family == "sdxl" else (
        "StableDiffusionControlNetPipeline"
    )  # fmt: skip
    nets = [controls(family, seed)[1] for seed in seeds]
    other = getattr(diffusers, kind)(
        **pipeline.components, controlnet=nets if len(nets) > 1 else nets[0]
    )
    other.set_progress_bar_config(disable=True)
    inputs = [tiny.nchw(one.astype(np.float32) / 255) for one in given]

    def theirs(scale):
        with torch.no_grad():
            made = other(
                PROMPTS, image=inputs if len(inputs) > 1 else inputs[0], guidance_scale=3.0,
                latents=tiny.nchw(first_noise(model, 2, 3, **how)), num_inference_steps=STEPS,
                controlnet_conditioning_scale=scale, output_type="latent",
            )  # fmt: skip
        return tiny.nhwc(made.images)

    expected = theirs(scales if len(scales) > 1 else scales[0])
    assert np.abs(expected - theirs([0.0] * len(scales) if len(scales) > 1 else 0.0)).max() > 0.05
    np.testing.assert_allclose(x_0, expected, atol=1e-4, rtol=1e-4)
