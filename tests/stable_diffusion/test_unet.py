"""The U-Net against diffusers', at random weights; the full configs by their shapes and names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.models.condition import Condition, SpatialMap, Text
from diffjax.stable_diffusion import names, unet
from diffjax.stable_diffusion.names import LEAVES


def torch_output(tiny, theirs, x, t, tokens, pooled, sizes):
    import torch

    added = {}
    if pooled is not None:
        added = {"text_embeds": torch.tensor(pooled), "time_ids": torch.tensor(sizes)}
    with torch.no_grad():
        out = theirs(
            tiny.nchw(x), torch.tensor(t), encoder_hidden_states=torch.tensor(tokens),
            added_cond_kwargs=added or None,
        ).sample  # fmt: skip
    return tiny.nhwc(out)


@pytest.mark.parametrize("family", ("sd15", "sd21", "sdxl", "sd15_inpaint"))
@pytest.mark.parametrize("size", ((7, 10), pytest.param((8, 8), marks=pytest.mark.slow)))
def test_it_is_diffusers_unet(tiny, folders, family, size):
    folder, pipeline = folders(family)
    ours = unet.read(folder / "unet")
    params = unet.load(ours, folder / "unet")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 4), np.float32)
    spatial = rng.standard_normal((2, *size, 5), np.float32) if "inpaint" in family else None
    t = np.array([17.0, 981.0], np.float32)
    tokens = rng.standard_normal((2, 9, ours.module.text_width), np.float32)
    pooled = sizes = None
    if family == "sdxl":
        pooled = rng.standard_normal((2, 32), np.float32)
        sizes = np.array([[512, 384, 0, 16, 256, 256]] * 2, np.float32)
    whole = x if spatial is None else np.concatenate([x, spatial], axis=-1)
    expected = torch_output(tiny, pipeline.unet, whole, t, tokens, pooled, sizes)
    found = jax.jit(ours.network.apply)(
        params, x, t,
        Condition(
            text=Text(tokens, np.ones((2, 9), bool), pooled), augmentation=sizes,
            map=None if spatial is None else SpatialMap(spatial, np.ones(2, bool)),
        ),
    )  # fmt: skip
    assert found.shape == expected.shape and np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


FULL = {
    "sd15": {
        "attention_head_dim": 8, "cross_attention_dim": 768,
    },
    "sd21": {
        "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
        "use_linear_projection": True, "upcast_attention": True, "sample_size": 96,
    },
    "sdxl": {
        "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
        "use_linear_projection": True, "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
    "inpaint": {"attention_head_dim": 8, "cross_attention_dim": 768, "in_channels": 9},
}  # fmt: skip
COUNTS = {
    "sd15": (859_520_964, 686), "sd21": (865_910_724, 686), "sdxl": (2_567_463_684, 1_680),
    "inpaint": (859_520_964 + 5 * 9 * 320, 686),
}  # fmt: skip


def full(tmp_path, family):
    import json

    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DConditionModel", "sample_size": 64, **FULL[family]})
    )
    return unet.read(tmp_path)


def leaves(shapes):
    return {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }


@pytest.mark.parametrize("family", FULL)
def test_parameters_of_the_full_networks(tmp_path, family):
    shapes = leaves(full(tmp_path, family).shapes())
    count, tensors = COUNTS[family]
    assert sum(map(int, map(np.prod, shapes.values()))) == count
    assert len(shapes) == tensors


@pytest.mark.parametrize("family", ("sd15", "sd21", "sdxl"))
def test_every_tensor_of_the_full_networks_has_diffusers_name_and_size(tiny, tmp_path, family):
    import diffusers
    import torch

    ours = full(tmp_path, family)
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**FULL[family])
    expected = {name: tuple(p.shape) for name, p in theirs.state_dict().items()}
    of = names.of_unet(len(ours.module.channels))
    found = {}
    for path, shape in leaves(ours.shapes()).items():
        owner, _, leaf = path.rpartition("/")
        ((name,),) = of(owner)
        name = f"{name}.{LEAVES[leaf]}"
        if leaf == "kernel":
            shape = (shape[-1], shape[-2], *shape[:-2])
            shape += (1, 1) if len(expected[name]) == 4 and len(shape) == 2 else ()
        found[name] = shape
    assert found == expected


def test_half_precision_is_near(folders):
    folder, _ = folders("sd15")
    text = Text(np.ones((1, 5, 32), np.float32), None)
    x, t = jnp.ones((1, 8, 8, 4)), jnp.array([500.0])
    outputs = []
    for dtype in (jnp.float32, jnp.bfloat16):
        ours = unet.read(folder / "unet", dtype=dtype)
        params = unet.load(ours, folder / "unet")
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        outputs.append(jax.jit(ours.network.apply)(params, x, t, Condition(text=text)))
    wide, narrow = outputs
    assert wide.dtype == narrow.dtype == jnp.float32
    assert 0 < np.abs(wide - narrow).max() < 0.1 * np.abs(wide).max()


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"class_embed_type": "timestep"}, r"class_embed_type='timestep' .*expected null"),
        ({"num_attention_heads": 8}, "num_attention_heads=8"),
        ({"in_channels": 5}, "in_channels=5 .*expected 4, or 9 for inpainting"),
        ({"act_fn": "gelu"}, "act_fn='gelu'.* expected 'silu'"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim=256"),
        ({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "down_block_types="),
        ({"up_block_types": ["CrossAttnUpBlock2D"] * 2}, "expected down_block_types reversed"),
        ({"attention_head_dim": 5}, "attention_head_dim=5"),
        ({"attention_head_dim": [4, 4, 4]}, "expected 2 numbers"),
        ({"layers_per_block": "2"}, "layers_per_block='2'"),
        ({"only_cross_attention": True}, "only_cross_attention=True"),
        ({"sparkle": 3}, "sparkle=3 .*expected no such field"),
        ({"_class_name": "UNet2DModel"}, "_class_name='UNet2DModel'"),
    ),
)
def test_a_field_that_is_not_supported(folders, tmp_path, change, message):
    import json

    from diffjax.errors import UserError

    folder, _ = folders("sd15")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message) as error:
        unet.read(tmp_path)
    assert "\n" not in str(error.value)
