"""CLIP's text model against torch, at random weights, and its tokenizer against transformers'."""

import json

import jax
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from diffjax.conditioning.clip import BEGIN, END, clip, clip_tokenizer
from diffjax.errors import UserError

pytest.importorskip("torch", reason="a second implementation of CLIP")
transformers = pytest.importorskip("transformers", reason="a second implementation of CLIP")

CAPTIONS = ["a red cat sits on the mat", "dog", "one two three blue"]
SIZES = {
    "vocab_size": 40, "hidden_size": 24, "intermediate_size": 50, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 20,
}  # fmt: skip
MARKS = {"begin": (BEGIN, 38), "end": (END, 39)}
# With an end token that is not the highest id, the two rules for `pooled` differ.
LOW_END = {"begin": (BEGIN, 38), "end": (END, 25)}


def text_config(**changes):
    return transformers.CLIPTextConfig(
        **{**SIZES, "bos_token_id": 38, "eos_token_id": 39, "pad_token_id": 0, **changes}
    )


def torch_output(model, ids, mask):
    import torch

    with torch.no_grad():
        found = model(input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long())
    return found.last_hidden_state.numpy(), found.pooler_output.numpy()


def compare(encoder, model):
    ids, mask = encoder.tokenise(CAPTIONS)
    ours = jax.jit(encoder.encode)(encoder.params, ids, mask)
    states, pooled = torch_output(model, ids, mask)
    np.testing.assert_allclose(np.asarray(ours.tokens)[mask], states[mask], atol=2e-5, rtol=0)
    assert np.all(np.asarray(ours.tokens)[~mask] == 0)
    np.testing.assert_allclose(ours.pooled, pooled, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("marks", "changes"),
    (
        (MARKS, {"hidden_act": "quick_gelu"}),
        (MARKS, {"hidden_act": "gelu"}),
        (MARKS, {"hidden_act": "gelu", "eos_token_id": 2}),
        (LOW_END, {"hidden_act": "quick_gelu", "eos_token_id": 25}),
        (LOW_END, {"hidden_act": "quick_gelu", "eos_token_id": 2}),
    ),
)
def test_it_is_transformers_clip(saved, marks, changes):
    model = transformers.CLIPTextModel(text_config(**changes))
    compare(clip(folder=saved(model, **marks), length=12), model)


def test_a_whole_clip_is_read_too(saved):
    tower = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1,
             "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=text_config(hidden_act="gelu").to_dict(), vision_config=tower
        )
    )
    folder = saved(model, **MARKS)
    encoder = clip(folder=folder, length=12)
    compare(encoder, model.text_model)


def test_what_a_config_leaves_out_has_transformers_defaults(saved, edit_json):
    model = transformers.CLIPTextModel(text_config(num_attention_heads=8))
    folder = saved(model, **MARKS)
    edit_json(
        folder / "config.json", num_attention_heads=None, hidden_act=None, layer_norm_eps=None
    )
    compare(clip(folder=folder, length=12), model)


@pytest.mark.parametrize("end", (2, 39))
def test_padding_changes_nothing(saved, end):
    folder = saved(transformers.CLIPTextModel(text_config(eos_token_id=end)), **MARKS)
    short, long = clip(folder=folder, length=9), clip(folder=folder, length=20)
    one, other = (e.encode(e.params, *e.tokenise(CAPTIONS)) for e in (short, long))
    np.testing.assert_allclose(one.tokens, other.tokens[:, :9], atol=2e-6)
    np.testing.assert_allclose(one.pooled, other.pooled, atol=2e-6)
    ids, mask = long.tokenise(CAPTIONS)
    third = long.encode(long.params, np.where(mask, ids, 39), mask)
    np.testing.assert_array_equal(third.tokens, other.tokens)
    np.testing.assert_array_equal(third.pooled, other.pooled)
    # A text whose end was cut off, padded with end tokens.
    cut = mask & (ids != 39)
    ended, bare = (
        long.encode(long.params, np.where(cut, ids, filler), cut).pooled for filler in (39, 0)
    )
    np.testing.assert_array_equal(ended, bare)
    none = long.encode(long.params, ids, np.zeros_like(mask))
    assert np.all(np.asarray(none.tokens) == 0) and np.all(np.asarray(none.pooled) == 0)


def test_a_token_sees_none_that_comes_later(saved):
    encoder = clip(folder=saved(transformers.CLIPTextModel(text_config()), **MARKS), length=9)
    one, other = (
        encoder.encode(encoder.params, *encoder.tokenise([text])).tokens[0]
        for text in ("a red cat", "a red dog")
    )
    np.testing.assert_array_equal(one[:3], other[:3])
    assert np.abs(one[3:5] - other[3:5]).max() > 1e-3


@pytest.mark.parametrize("length", (2, 21))
def test_a_length_beyond_the_positions(saved, length):
    folder = saved(transformers.CLIPTextModel(text_config()), **MARKS)
    with pytest.raises(UserError, match=f"length={length} for model; expected 3 to 20"):
        clip(folder=folder, length=length)


def test_another_activation_is_refused(saved, edit_json):
    folder = saved(transformers.CLIPTextModel(text_config()), **MARKS)
    edit_json(folder / "config.json", hidden_act="silu")
    with pytest.raises(UserError, match=r"hidden_act='silu'.*expected quick_gelu or gelu"):
        clip(folder=folder)


def test_a_whole_clip_without_its_text_config(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="found no text_config"):
        clip(folder=tmp_path)


MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>", "o n</w>"]
TEXTS = [
    "A red  cat, on\n2024 dogs' it's THE cat's!! ", "", "déjà-vu 猫 🙂", "cat<|endoftext|>dog",
    "e\u0301",
]  # fmt: skip


@pytest.fixture
def merges_folder(tmp_path):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = [merge.replace(" ", "") for merge in MERGES]
    entries = [*letters, *(letter + "</w>" for letter in letters), *joined, BEGIN, END]
    (tmp_path / "vocab.json").write_text(json.dumps({e: i for i, e in enumerate(entries)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return tmp_path


def test_vocab_and_merges_make_transformers_tokenizer(merges_folder):
    theirs = transformers.CLIPTokenizer.from_pretrained(merges_folder)
    ours = clip_tokenizer(merges_folder)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    assert "cat</w>" in ours.encode(TEXTS[0]).tokens  # the merges are used


@pytest.mark.parametrize(
    ("name", "text", "message"),
    (
        ("merges.txt", None, "vocab.json and merges.txt .*FileNotFoundError"),
        ("merges.txt", "one two three", "vocab.json and merges.txt .*ValueError"),
        ("merges.txt", "q w", "vocab.json and merges.txt .*Exception"),
        ("vocab.json", '{"a": 0}', r"found no <\|startoftext\|> in"),
        ("vocab.json", "{", "cannot read .*vocab.json"),
        ("vocab.json", None, "found no tokenizer.json"),
    ),
)
def test_damaged_vocabularies(merges_folder, name, text, message):
    if text is None:
        (merges_folder / name).unlink()
    else:
        (merges_folder / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        clip_tokenizer(merges_folder)
    assert "\n" not in str(error.value)
