"""The text encoders against transformers', with either naming, and their tokenizers."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.stable_diffusion import text

PROMPTS = ["a red cat on a dog", "", "cat " * 100, "Dog! 2024, déjà-vu"]


def parts(folder, *which, penultimate):
    made = []
    for encoder, tokenizer in which:
        read = text.read(folder / encoder, penultimate=penultimate)
        params = text.load(read, folder / encoder)
        made.append(text.Part(read, params, text.read_tokenizer(folder / tokenizer, read)))
    return made


def prompt_embeddings(pipeline, prompts):
    import torch

    with torch.no_grad():
        made = pipeline.encode_prompt(
            prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    return [None if one is None else one.numpy() for one in made]


@pytest.mark.parametrize("family", ("sd15", "sd21"))
def test_the_last_states_are_transformers(folders, family):
    folder, pipeline = folders(family)
    one = parts(folder, ("text_encoder", "tokenizer"), penultimate=False)
    expected, negative = prompt_embeddings(pipeline, PROMPTS)
    texts = text.texts(one, zeros_for_none=False, identity="tiny")
    found = texts.encode(PROMPTS)
    assert found.tokens.shape == (4, 77, 32) and found.mask.all() and found.pooled is None
    np.testing.assert_allclose(found.tokens, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(texts.null().tokens, negative[:1], atol=1e-5, rtol=1e-5)


def test_sdxls_two_encoders(folders):
    folder, pipeline = folders("sdxl")
    both = parts(
        folder, ("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"), penultimate=True
    )
    texts = text.texts(both, zeros_for_none=True, identity="tiny")
    expected, negative, pooled, negative_pooled = prompt_embeddings(pipeline, PROMPTS)
    found = texts.encode(PROMPTS)
    assert found.tokens.shape == (4, 77, 64) and found.pooled.shape == (4, 32)
    np.testing.assert_allclose(found.tokens, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(texts.null().tokens, negative[:1])
    np.testing.assert_array_equal(texts.null().pooled, negative_pooled[:1])


def test_names_with_and_without_the_prefix_of_older_versions(folders, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = folders("sdxl")[0] / "text_encoder_2"
    tensors = load_file(folder / "model.safetensors")
    names = {name: name.removeprefix("text_model.") for name in tensors}
    shutil.copy(folder / "config.json", tmp_path)
    ids, found = np.array([[5, 9, 2, 262, 0]]), []
    for prefix in ("", "text_model."):
        renamed = {
            (old if old.startswith("text_projection") else prefix + new): tensors[old]
            for old, new in names.items()
        }
        renamed[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
        save_file(renamed, tmp_path / "model.safetensors")
        encoder = text.read(tmp_path)
        found.append(encoder(text.load(encoder, tmp_path), ids))
    np.testing.assert_array_equal(*(tokens for tokens, _ in found))
    np.testing.assert_array_equal(*(pooled for _, pooled in found))


def test_weights_of_half_the_size(folders):
    folder = folders("sdxl")[0] / "text_encoder_2"
    encoder = text.read(folder)
    params = text.load(encoder, folder, dtype=jnp.bfloat16)
    wide = encoder(text.load(encoder, folder), jnp.array([[5, 9, 2]]))[1]
    narrow = encoder(params, jnp.array([[5, 9, 2]]))[1]
    assert params["layer_0"]["expand"]["kernel"].dtype == jnp.bfloat16
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.05 * np.abs(wide).max())


def test_prompts_are_padded_as_the_tokenizer_says(folders):
    for family, padding in (("sd15", "<|endoftext|>"), ("sd21", "!")):
        folder, pipeline = folders(family)
        encoder = text.read(folder / "text_encoder")
        ids = text.read_tokenizer(folder / "tokenizer", encoder)(PROMPTS)
        expected = pipeline.tokenizer(
            PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="np"
        ).input_ids
        assert expected[0, -1] == pipeline.tokenizer.convert_tokens_to_ids(padding)
        np.testing.assert_array_equal(ids, expected)


ODD = [
    *"aAzZ09!'\",.-_()<>|éÉß猫🙂\n\t\u00a0\u0301\u200b½İ\ufb01", " ", "  ", "'s", "'LL", "cat",
    "Dog", "<|endoftext|>", "<|startoftext|>", "!!", "e\u0301",
]  # fmt: skip


@pytest.mark.parametrize("family", ("sd15", "sd21"))
def test_two_thousand_odd_strings(folders, family):
    folder, pipeline = folders(family)
    rng = np.random.default_rng(0)
    strings = ["".join(rng.choice(ODD, rng.integers(1, 9))) for _ in range(2000)]
    encoder = text.read(folder / "text_encoder")
    ids = text.read_tokenizer(folder / "tokenizer", encoder)(strings)
    expected = pipeline.tokenizer(
        strings, padding="max_length", max_length=77, truncation=True, return_tensors="np"
    ).input_ids
    wrong = [strings[i] for i in np.flatnonzero((ids != expected).any(1))]
    assert not wrong, wrong[:5]


def test_a_prompt_that_is_cut_is_named(folders, caplog):
    folder = folders("sd15")[0]
    encoder = text.read(folder / "text_encoder")
    text.read_tokenizer(folder / "tokenizer", encoder)(PROMPTS)
    assert "1 captions were cut to 77 tokens" in caplog.text


def test_parameters_of_clip_l(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072, '
        '"num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 49408}'
    )
    import jax

    shapes = text.read(tmp_path).shapes()
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 123_060_480


@pytest.fixture
def copied(folders, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(folders("sd15")[0], folder)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    (
        ("merges.txt", None, "vocab.json and merges.txt"),
        ("vocab.json", None, "found no tokenizer.json"),
        ("special_tokens_map.json", '{"pad_token": "<none>"}', "pad_token='<none>'"),
        ("special_tokens_map.json", "{", "cannot read .*special_tokens_map.json"),
    ),
)
def test_a_tokenizer_without_one_of_its_files(copied, name, content, message):
    path = copied / "tokenizer" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        text.read_tokenizer(copied / "tokenizer", text.read(copied / "text_encoder"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"use_attention_mask": True}, "use_attention_mask=True"),
        ({"hidden_act": "silu"}, "hidden_act='silu'"),
        ({"model_type": "t5"}, "model_type='t5'"),
        ({"num_hidden_layers": 1}, "num_hidden_layers=1"),
    ),
)
def test_an_encoder_that_is_not_supported(copied, change, message):
    import json

    path = copied / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        text.read(copied / "text_encoder", penultimate=True)
