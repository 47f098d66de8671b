"""ControlNets against diffusers': what they add, the U-Net's output with it, whole pipelines."""

import json
import shutil

import jax
import numpy as np
import pytest

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
