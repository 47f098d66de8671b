"""A folder with new networks: diffusers and transformers read it as it was meant."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.models.condition import Condition, Text
from diffjax.stable_diffusion import tokenizer
from diffjax.stable_diffusion.create import create, tokenizer_of
from diffjax.stable_diffusion.folder import load_folder

TEXTS = ["red apple, google style", "green apple, twitter style", "apple pie", "Ünïcode & 日本"] * 3
UNET = {
    "block_out_channels": [32, 64], "layers_per_block": 1, "sample_size": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 32,
    "norm_num_groups": 8, "attention_head_dim": 4,
}  # fmt: skip


def text_config(size):
    return {
        "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 2, "vocab_size": size, "eos_token_id": size - 1,
        "bos_token_id": size - 2, "pad_token_id": size - 1, "max_position_embeddings": 24,
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("created")
    size = tokenizer_of(TEXTS, folder / "tokenizer", size=530)
    create(
        folder / "sd", unet_config=UNET, text_config=text_config(size),
        vae=folders("sd15")[0] / "vae", tokenizer=folder / "tokenizer", seed=1,
    )  # fmt: skip
    return folder / "sd", size


def test_diffusers_reads_it(tiny, made):
    import diffusers
    import torch

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(made[0])
    folder = load_folder(made[0])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, 4), np.float32)
    ids = pipeline.tokenizer(TEXTS[:2], padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (2, 24)
    with torch.no_grad():
        tokens = pipeline.text_encoder(ids)[0]
        # Zero at first, so that the output would be.
        head = 0.1 * rng.standard_normal((3, 3, 32, 4), np.float32)
        pipeline.unet.conv_out.weight.copy_(torch.tensor(head.transpose(3, 2, 0, 1)))
        expected = pipeline.unet(tiny.nchw(x), torch.tensor([400, 20]), tokens).sample
    found = folder.texts[0].encoder(folder.texts[0].params, jnp.asarray(ids.numpy()))[0]
    np.testing.assert_allclose(found, tokens.numpy(), atol=2e-5)
    condition = Condition(text=Text(found, None, None))
    assert not np.any(folder.params["head"]["kernel"])
    params = {**folder.params, "head": {**folder.params["head"], "kernel": head}}
    out = folder.unet.module.apply({"params": params}, x, jnp.array([400.0, 20.0]), condition)
    assert np.std(out) > 0.05
    np.testing.assert_allclose(out, tiny.nhwc(expected), atol=2e-5)


def test_seeds_differ(made, folders, tmp_path):
    from safetensors.numpy import load_file

    folder, size = made
    create(
        tmp_path / "sd", unet_config=UNET, text_config=text_config(size),
        vae=folders("sd15")[0] / "vae", tokenizer=folder / "tokenizer", seed=2,
    )  # fmt: skip
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        one, other = (
            load_file(f / part / f"{name}.safetensors") for f in (folder, tmp_path / "sd")
        )
        assert one.keys() == other.keys()
        assert any(not np.array_equal(one[key], other[key]) for key in one)


def test_the_tokenizer_is_transformers(tiny, tmp_path):
    import transformers

    size = tokenizer_of(TEXTS, tmp_path, size=530)
    assert 514 < size <= 530
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    assert len(merges) == 1 + size - 514 and "a p" not in merges[0]
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = tokenizer.read(tmp_path, vocabulary=size, length=77)
    odd = [*TEXTS, "APPLE's 123 — ßtyle!!", "", "a" * 100]
    found = ours(odd)
    expected = theirs(odd, padding="max_length", truncation=True, max_length=77)["input_ids"]
    np.testing.assert_array_equal(found, expected)
    # What is frequent is one token.
    assert len(ours.pieces("apple")[0]) < len(ours.pieces("elppa")[0])


def test_what_does_not_fit(made, folders, tmp_path):
    folder, size = made
    parts = {"vae": folders("sd15")[0] / "vae", "tokenizer": folder / "tokenizer"}
    for changes, message in (
        ({"text_config": text_config(size - 20)}, "expected ids below vocab_size"),
        ({"unet_config": UNET | {"cross_attention_dim": 48}}, "48"),
        ({"unet_config": UNET | {"norm_num_groups": 7}}, "norm_num_groups"),
        ({"vae": tmp_path / "nowhere"}, "found no folder"),
    ):
        options = {"unet_config": UNET, "text_config": text_config(size), **parts, **changes}
        with pytest.raises(UserError, match=message):
            create(tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="expected at least 514"):
        tokenizer_of(TEXTS, tmp_path / "tokens", size=500)
    assert json.loads((folder / "model_index.json").read_text())["safety_checker"] == [None, None]
