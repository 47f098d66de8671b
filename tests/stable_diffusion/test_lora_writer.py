"""Adapters that are written, merged by hand and loaded by diffusers."""

import numpy as np
import pytest
from flax import traverse_util
from safetensors import safe_open

from diffjax.errors import UserError
from diffjax.models.lora import Adapter, merge
from diffjax.stable_diffusion.folder import load_folder
from diffjax.stable_diffusion.lora_writer import save_lora

RANK, ALPHA = 3, 1.5
LAYERS = (
    ("down0_0_transformer", "self0_q", "kernel"), ("down0_1_transformer", "cross0_v", "kernel"),
    ("middle_0_transformer", "mlp0_in", "kernel"), ("up0_2_transformer", "in", "kernel"),
    ("up1_0", "conv1", "kernel"), ("up1_0", "skip", "kernel"), ("middle_1", "embedding", "kernel"),
)  # fmt: skip
NAMES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v",
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "unet.up_blocks.1.attentions.2.proj_in",
    "unet.up_blocks.0.resnets.0.conv1",
    "unet.up_blocks.0.resnets.0.conv_shortcut",
    "unet.mid_block.resnets.1.time_emb_proj",
}
TEXT_LAYER = ("layer_1", "attention", "query", "kernel")


@pytest.fixture(scope="module")
def folder(folders):
    return load_folder(folders("sd15")[0])


def adapters_of(params, places, seed=0):
    """Random adapters of kernels, large enough to change an image."""
    rng = np.random.default_rng(seed)
    made = {}
    for place in places:
        shape = traverse_util.flatten_dict(params)[place].shape
        size = np.prod(shape[:-1])
        made[place] = Adapter(
            rng.normal(size=(*shape[:-1], RANK)).astype(np.float32) * size**-0.5,
            rng.normal(size=(*(1,) * (len(shape) - 2), RANK, shape[-1])).astype(np.float32),
            ALPHA,
        )
    return made


def read(path):
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in list(file.keys())}


def test_names_shapes_and_products_are_those_of_the_kernels(folder, tmp_path):
    adapters = adapters_of(folder.params, LAYERS)
    texts = [adapters_of(folder.texts[0].params, [TEXT_LAYER])]
    path = save_lora(tmp_path / "lora.safetensors", adapters, folder=folder, texts=texts)
    found = read(path)
    text = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
    assert {name.rsplit(".lora_", 1)[0] for name in found} == NAMES | {text}
    assert {name.rsplit(".", 2)[1] for name in found} == {"lora_A", "lora_B"}
    conv = {key: found[f"unet.up_blocks.0.resnets.0.conv1.lora_{key}.weight"] for key in "AB"}
    width = folder.params["up1_0"]["conv1"]["kernel"].shape
    assert conv["A"].shape == (RANK, width[2], 3, 3) and conv["B"].shape == (width[3], RANK, 1, 1)
    # A torch convolution with A, then B, is one with their product.
    of_file = np.einsum("rihw,or->hwio", conv["A"], conv["B"][..., 0, 0])
    given = adapters[("up1_0", "conv1", "kernel")]
    product = ALPHA / RANK * given.down @ given.up[0, 0]
    np.testing.assert_allclose(of_file, product, atol=1e-6)
    # proj_in is a 1x1 convolution in Stable Diffusion 1.
    assert found["unet.up_blocks.1.attentions.2.proj_in.lora_A.weight"].shape[2:] == (1, 1)
    assert found[f"{text}.lora_A.weight"].shape == (RANK, 32)


@pytest.mark.parametrize("family", ("sd15", "sdxl"))
def test_diffusers_loads_it(tiny, folders, tmp_path, family):
    pytest.importorskip("peft")
    import diffusers
    import torch

    pipeline = type(folders(family)[1]).from_pretrained(folders(family)[0])
    of = load_folder(folders(family)[0])
    places = [place for place in LAYERS if place in traverse_util.flatten_dict(of.params)]
    adapters = adapters_of(of.params, places)
    texts = [adapters_of(part.params, [TEXT_LAYER], seed=1) for part in of.texts]
    save_lora(tmp_path / "pytorch_lora_weights.safetensors", adapters, folder=of, texts=texts)
    assert isinstance(pipeline, diffusers.DiffusionPipeline)
    pipeline.load_lora_weights(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 8, 8, 4)).astype(np.float32)
    tokens = rng.normal(size=(1, 5, of.unet.module.text_width)).astype(np.float32)
    from diffjax.models.condition import Condition, Text

    extra, pooled, sizes = {}, None, None
    if family == "sdxl":
        pooled = rng.normal(size=(1, 32)).astype(np.float32)
        sizes = np.full((1, 6), 16.0, np.float32)
        extra = {"added_cond_kwargs": {"text_embeds": torch.tensor(pooled),
                                       "time_ids": torch.tensor(sizes)}}  # fmt: skip
    with torch.no_grad():
        expected = tiny.nhwc(pipeline.unet(tiny.nchw(x), 7, torch.tensor(tokens), **extra).sample)
        ids = torch.arange(77)[None]
        states = [
            encoder(ids).last_hidden_state.numpy()
            for encoder in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None))
            if encoder is not None
        ]
    cond = Condition(text=Text(tokens, None, pooled), augmentation=sizes)
    t = np.array([7.0], np.float32)
    found = of.unet.network.apply(merge(of.params, adapters), x, t, cond)
    plain = of.unet.network.apply(of.params, x, t, cond)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(plain - expected).max() > 0.01
    for part, given, theirs in zip(of.texts, texts, states, strict=True):
        encoder = part.encoder._replace(penultimate=False)
        tokens, _ = encoder(merge(part.params, given), np.arange(77)[None])
        np.testing.assert_allclose(tokens, theirs, atol=2e-5)


def test_half_precision(folder, tmp_path):
    adapters = adapters_of(folder.params, LAYERS[:1])
    path = save_lora(tmp_path / "lora.safetensors", adapters, folder=folder, dtype="float16")
    assert {array.dtype for array in read(path).values()} == {np.dtype(np.float16)}


def changed(**change):
    def of(folder):
        return {LAYERS[0]: adapters_of(folder.params, LAYERS[:1])[LAYERS[0]]._replace(**change)}

    return of


@pytest.mark.parametrize(
    ("adapters", "how", "message"),
    (
        (lambda folder: {}, {}, "there are no adapters"),
        (lambda folder: {("stem", "bias"): None}, {}, "stem/bias, which is no kernel of the unet"),
        (lambda folder: {("stem", "x", "kernel"): None}, {}, "stem/x/kernel, which is no kernel"),
        (changed(down=np.zeros((5, 3))), {}, r"\(5, 3\) and \(3, 32\).*expected \(32, 'rank'\)"),
        (changed(up=np.zeros((2, 32))), {}, r"\(32, 3\) and \(2, 32\)"),
        (changed(), {"dtype": "int8"}, "dtype is 'int8'"),
        (changed(), {"texts": [{}, {}]}, "adapters of 2 text encoders"),
    ),
)
def test_wrong_adapters(folder, tmp_path, adapters, how, message):
    with pytest.raises(UserError, match=message) as error:
        save_lora(tmp_path / "lora.safetensors", adapters(folder), folder=folder, **how)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
