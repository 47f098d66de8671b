"""T5's encoder against torch, at random weights."""

import jax
import numpy as np
import pytest

from diffjax.conditioning.t5 import relative_buckets, t5
from diffjax.errors import UserError

torch = pytest.importorskip("torch", reason="a second implementation of T5")
transformers = pytest.importorskip("transformers", reason="a second implementation of T5")

CAPTIONS = ["a red cat sits on the mat", "dog", "one two three blue " * 7]
MARKS = {"begin": None, "end": ("</s>", 2)}
KINDS = ("relu", "gated-gelu")


def config(kind):
    # head_width x heads is not d_model, as in T5-small's and T5-11B's cases.
    return transformers.T5Config(
        vocab_size=40, d_model=24, d_kv=5, d_ff=50, num_layers=3, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
        feed_forward_proj=kind, decoder_start_token_id=0,
    )  # fmt: skip


def states(model, ids, mask):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()


def compare(encoder, model):
    ids, mask = encoder.tokenise(CAPTIONS)
    assert mask.sum(1).tolist() == [8, 2, 29]
    ours = jax.jit(encoder.encode)(encoder.params, ids, mask)
    theirs = states(model, ids, mask)
    np.testing.assert_allclose(np.asarray(ours.tokens)[mask], theirs[mask], atol=2e-5, rtol=0)
    assert np.all(np.asarray(ours.tokens)[~mask] == 0)
    for pooled, state, real in zip(ours.pooled, theirs, mask, strict=True):
        np.testing.assert_allclose(pooled, state[real].mean(0), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_transformers_t5_encoder(saved, kind):
    model = transformers.T5EncoderModel(config(kind))
    compare(t5(folder=saved(model, **MARKS), length=40), model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_t5_is_read_too(saved, kind):
    model = transformers.T5ForConditionalGeneration(config(kind))
    compare(t5(folder=saved(model, **MARKS), length=40), model.encoder)


@pytest.mark.parametrize(("buckets", "distance"), ((32, 128), (8, 20), (4, 16), (64, 256)))
def test_buckets_are_transformers(buckets, distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    length = 400
    offset = torch.arange(length)[None] - torch.arange(length)[:, None]
    theirs = T5Attention._relative_position_bucket(
        offset, bidirectional=True, num_buckets=buckets, max_distance=distance
    )
    ours = relative_buckets(length, buckets=buckets, max_distance=distance)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_padding_changes_nothing(saved):
    folder = saved(transformers.T5EncoderModel(config("gated-gelu")), **MARKS)
    short, long = t5(folder=folder, length=29), t5(folder=folder, length=50)
    assert short.digest != long.digest
    one, other = (e.encode(e.params, *e.tokenise(CAPTIONS)) for e in (short, long))
    np.testing.assert_allclose(one.tokens, other.tokens[:, :29], atol=2e-6)
    np.testing.assert_allclose(one.pooled, other.pooled, atol=2e-6)
    ids, mask = long.tokenise(CAPTIONS)
    third = long.encode(long.params, np.where(mask, ids, 7), mask)
    np.testing.assert_array_equal(third.tokens, other.tokens)
    none = long.encode(long.params, ids, np.zeros_like(mask))
    assert np.all(np.asarray(none.tokens) == 0) and np.all(np.asarray(none.pooled) == 0)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"feed_forward_proj": "gated-silu"}, "expected relu or gated-gelu"),
        ({"feed_forward_proj": "gated-gelu"}, "found no tensor encoder.block.0.*wi_"),
        ({"relative_attention_num_buckets": 6}, "6 relative_attention buckets"),
        ({"relative_attention_num_buckets": 0}, "0 relative_attention buckets"),
        ({"relative_attention_max_distance": 2}, "up to distance 2"),
        ({"d_kv": 6}, r"SelfAttention.*of shape \(20, 24\) .*expected \(24, 24\)"),
    ),
)
def test_a_config_that_does_not_fit(saved, edit_json, change, message):
    folder = saved(transformers.T5EncoderModel(config("relu")), **MARKS)
    edit_json(folder / "config.json", **change)
    with pytest.raises(UserError, match=message) as error:
        t5(folder=folder)
    assert "\n" not in str(error.value)


def test_a_length_without_room_for_a_word(saved):
    folder = saved(transformers.T5EncoderModel(config("relu")), **MARKS)
    with pytest.raises(UserError, match=r"length=1 .* expected 2 or more"):
        t5(folder=folder, length=1)
