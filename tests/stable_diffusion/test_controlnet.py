"""ControlNets against diffusers': what they add, the U-Net's output with it, whole pipelines."""

import json
import shutil

import jax
import numpy as np
import pytest

import diffjax
from diffjax.errors import UserError
from diffjax.inference.sample_conditions import Choice
from diffjax.models.condition import Condition, Control, Text
from diffjax.models.controlnet import ControlledNetwork
from diffjax.models.stable_diffusion import StableDiffusionUNet
from diffjax.stable_diffusion import controlnet, names, unet


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


@pytest.mark.slow
def test_images_and_scales_are_heard(loaded):
    model = loaded("sd15", 7)
    how = {"steps": 1, "seed": 1, "guidance": "none"}
    given = images(2)
    drawn = model.sample(PROMPTS[:1], control_images=given, **how)
    assert drawn.shape == (2, 16, 16, 3)  # as many as there are control images
    other = model.sample(PROMPTS[:1], control_images=255 - given, **how)
    assert np.abs(drawn.astype(int) - other).mean() > 1
    half = model.sample(PROMPTS[:1], control_images=given, control_scale=0.5, **how)
    assert (half[0] != drawn[0]).any()


@pytest.mark.slow
def test_the_size_is_that_of_the_control_images(loaded):
    model = loaded("sd15", 7)
    wide = model.sample(PROMPTS[:1], control_images=images(1, (16, 24)), steps=1)
    assert wide.shape == (1, 16, 24, 3)


def test_without_scale_it_is_the_unet(folders, loaded):
    plain = diffjax.load(folders("sd15")[0])
    model = loaded("sd15", 7)
    x, rest = np.ones((1, 8, 8, 4), np.float32) / 3, {"prompts": PROMPTS[:1], "guidance": "none"}
    expected = plain.denoise(x, 500, **rest).x_0
    off, on, other = (
        model.with_control(given, scale).denoise(x, 500, **rest).x_0
        for given, scale in ((images(1), 0.0), (images(1), 1.0), (images(1, seed=1), 1.0))
    )
    for one, two in ((on, off), (on, other)):
        assert np.abs(one - two).max() > 0.05 * np.abs(off).max()
    np.testing.assert_allclose(off, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_perturbed_attention_with_control(folders, loaded):
    how = {"steps": 2, "seed": 1, "guidance": "perturbed_attention(scale=2.0)"}
    model = loaded("sd15", 7)
    drawn = model.sample(PROMPTS[:1], control_images=images(1), control_scale=0, **how)
    plain = diffjax.load(folders("sd15")[0]).sample(PROMPTS[:1], **how)
    assert np.abs(drawn.astype(int) - plain).max() <= 1


def test_edits_with_control(loaded):
    model = loaded("sd15", 7)
    how = {"prompts": PROMPTS[:1], "count": 2, "steps": 2, "seed": 1, "guidance": "none"}
    pictures = images(2, seed=5)
    one, other = (
        model.edit(pictures, "vary(strength=0.9)", control_images=given, **how)
        for given in (images(2), images(1))
    )
    assert one.shape == (2, 4 - 1, 16, 16, 3)
    np.testing.assert_array_equal(one[0], other[0])
    assert (one[1, 1:] != other[1, 1:]).any()


@pytest.mark.slow
def test_an_inpainting_network_with_control(tiny, folders, controls, tmp_path):
    folder, pipeline = folders("sd15_inpaint")
    where, theirs = controls("sd15")
    assert theirs.config.in_channels == 4 and pipeline.unet.config.in_channels == 9
    model = diffjax.load(folder, control=where)
    known = np.arange(16)[:, None] < np.full(16, 8)
    how = {"mask": known, "prompts": PROMPTS[:1], "count": 1, "steps": 2}
    one, other = (
        model.edit(images(1), "inpaint", control_images=given, **how)[0, 2]
        for given in (images(1), images(1, seed=1))
    )
    assert (one != other)[~known].any() and (one == other)[known].all()


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda m: m.sample(PROMPTS), "has a ControlNet: give control_images"),
        (lambda m: m.sample(PROMPTS, control_images=3), "control_images is 3: expected uint8"),
        (lambda m: m.sample(PROMPTS, control_images=images(1) / 255.0), "float64 .*expected uint8"),
        (lambda m: m.sample(PROMPTS, control_images=images(1)[..., :1]), r"expected uint8 images"),
        (lambda m: m.sample(PROMPTS, control_images=images(1), height=32, width=16),
         "control_images are 16x16: expected the size of the result, 32x16"),
        (lambda m: m.sample(PROMPTS, control_images=images(1, (16, 15))), "width is 15: expected"),
        (lambda m: m.sample(PROMPTS, control_images=[images(1)] * 2), "control_images is 2: expec"),
        (lambda m: m.sample(PROMPTS, control_images=images(1), control_scale="a"), "control_scale"),
        (lambda m: m.sample(PROMPTS, control_images=images(1), control_scale=[1, 1]),
         "2 numbers in control_scale for 1 ControlNets"),
        (lambda m: m.edit(images(3), "vary", prompts=["a"], control_images=images(2)),
         "2 control_images for 3 images: expected 1 or 3"),
        (lambda m: m.edit(images(1), "vary", prompts=["a"], control_images=images(1, (16, 18))),
         "control_images are 16x18: expected the size of the result, 16x16"),
    ),
)  # fmt: skip
def test_wrong_control_images(loaded, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(loaded("sd15", 7))
    assert "\n" not in str(error.value)


def test_a_model_without_control_is_given_none(folders):
    with pytest.raises(UserError, match="no ControlNet: load it with"):
        diffjax.load(folders("sd15")[0]).sample(PROMPTS, control_images=images(1))


def changed(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("break_it", "message"),
    (
        (lambda f: (f / "config.json").unlink(), r"found no config\.json"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(), r"found no diffusion_py"),
        (changed(_class_name="UNet2DConditionModel"), "expected 'ControlNetModel'"),
        (changed(_class_name="ControlNetUnionModel"), "_class_name='ControlNetUnionModel'"),
        (changed(block_out_channels=[32, 128]),
         r"block_out_channels=\[32, 128\] .*U-Net, with channels \(32, 64\); use a ControlNet of"),
        (changed(cross_attention_dim=64), "cross_attention_dim=64 .* text_width 32"),
        (changed(conditioning_embedding_out_channels=[8, 16, 32]), "for 4 pixels a latent; expec"),
        (changed(global_pool_conditions=True), "global_pool_conditions=True"),
        (changed(controlnet_conditioning_channel_order="gbr"), "='gbr' .*expected rgb or bgr"),
        (changed(sparkle=3), "sparkle=3"),
        (changed(conditioning_embedding_out_channels=[8, 32]), "of shape .*expected"),
    ),
)  # fmt: skip
def test_a_broken_controlnet(folders, controls, tmp_path, break_it, message):
    folder = tmp_path / "copy"
    shutil.copytree(controls("sd15")[0], folder)
    break_it(folder)
    module = unet.read(folders("sd15")[0] / "unet").module
    with pytest.raises(UserError, match=message) as error:
        controlnet.load(folder, module, factor=2)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_family_or_of_none(folders, controls, tmp_path):
    folder = folders("sdxl")[0]
    for control, message in (
        (controls("sd15")[0], "use a ControlNet of the same family"),
        (tmp_path / "none", "found no folder"),
        (3, "control is 3: expected a folder"),
        ([3], r"control is \[3\]: expected a folder"),
    ):
        with pytest.raises(UserError, match=message):
            diffjax.load(folder, control=control)


def test_reversed_channels(folders, controls, tmp_path):
    folder, _ = controls("sd15")
    module = unet.read(folders("sd15")[0] / "unet").module
    shutil.copytree(folder, tmp_path / "bgr")
    changed(controlnet_conditioning_channel_order="bgr")(tmp_path / "bgr")
    rgb, bgr = (controlnet.load(path, module, factor=2) for path in (folder, tmp_path / "bgr"))
    x, t, image = np.ones((1, 8, 8, 4)), np.ones(1), np.random.default_rng(0).random((1, 16, 16, 3))
    condition = Condition(text=Text(np.ones((1, 3, 32), np.float32), None))
    one, other, plain = (
        net.module.apply({"params": net.params}, x, t, condition, given).middle
        for net, given in ((rgb, image[..., ::-1]), (bgr, image), (rgb, image))
    )
    np.testing.assert_array_equal(one, other)
    assert np.abs(other - plain).max() > 1e-3


FULL = {
    "sd15": ({"cross_attention_dim": 768}, 361_279_120),
    "sd21": (
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
         "use_linear_projection": True}, 364_228_240,
    ),
    "sdxl": (
        {"cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
         "block_out_channels": [320, 640, 1280], "use_linear_projection": True,
         "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
         "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
         "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
        1_251_014_160,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FULL)
def test_every_tensor_of_the_full_networks_has_diffusers_name_and_size(tiny, tmp_path, family):
    import diffusers
    import torch

    config, count = FULL[family]
    with torch.device("meta"):
        theirs = diffusers.ControlNetModel(**config)
    expected = {name: tuple(p.shape) for name, p in theirs.state_dict().items()}
    theirs.save_config(tmp_path)
    others = {
        "sd15": {"text_width": 768},
        "sd21": {"text_width": 1024},
        "sdxl": {"text_width": 2048, "pooled_width": 1280, "channels": (320, 640, 1280)},
    }
    module = controlnet.read(tmp_path, StableDiffusionUNet(**others[family]), latent_channels=4)
    assert module.factor == 8
    of, found = names.of_controlnet(len(module.channels)), {}
    shapes = controlnet.shapes(module, 4)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        owner, _, end = "/".join(key.key for key in path).rpartition("/")
        ((name,),) = of(owner)
        shape = leaf.shape
        if end == "kernel":
            shape = (shape[-1], shape[-2], *shape[:-2])
            shape += (1, 1) if len(shape) == 2 and len(expected[f"{name}.weight"]) == 4 else ()
        found[f"{name}.{names.LEAVES[end]}"] = shape
    assert found == expected
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
