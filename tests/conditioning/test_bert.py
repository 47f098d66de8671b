"""BERT against torch, at random weights."""

import jax
import numpy as np
import pytest

from diffjax.conditioning.bert import bert
from diffjax.errors import UserError

pytest.importorskip("torch", reason="a second implementation of BERT")
transformers = pytest.importorskip("transformers", reason="a second implementation of BERT")

CAPTIONS = ["a red cat sits on the mat", "dog", "one two three blue"]
SIZES = {
    "vocab_size": 40, "hidden_size": 24, "intermediate_size": 50, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 20,
}  # fmt: skip


@pytest.fixture
def folder_and_model(saved):
    model = transformers.BertModel(
        transformers.BertConfig(**SIZES, layer_norm_eps=1e-5), add_pooling_layer=False
    )
    return saved(model), model


def states(model, ids, mask):
    import torch

    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()


def test_it_is_transformers_bert(folder_and_model):
    folder, model = folder_and_model
    encoder = bert(folder=folder, length=12)
    assert encoder.name == "model" and encoder.width == 24 and encoder.length == 12
    ids, mask = encoder.tokenise(CAPTIONS)
    assert mask.sum(1).tolist() == [9, 3, 6]
    ours = jax.jit(encoder.encode)(encoder.params, ids, mask)
    theirs = states(model, ids, mask)
    np.testing.assert_allclose(np.asarray(ours.tokens)[mask], theirs[mask], atol=2e-5, rtol=0)
    assert np.all(np.asarray(ours.tokens)[~mask] == 0)
    for pooled, state, real in zip(ours.pooled, theirs, mask, strict=True):
        np.testing.assert_allclose(pooled, state[real].mean(0), atol=2e-5, rtol=0)


def test_padding_changes_nothing(folder_and_model):
    folder, _ = folder_and_model
    short, long = bert(folder=folder, length=9), bert(folder=folder, length=20)
    assert short.digest != long.digest
    one, other = (e.encode(e.params, *(e.tokenise(CAPTIONS))) for e in (short, long))
    np.testing.assert_allclose(one.tokens, other.tokens[:, :9], atol=2e-6)
    np.testing.assert_allclose(one.pooled, other.pooled, atol=2e-6)
    # What stands where the mask is False is not looked at.
    ids, mask = long.tokenise(CAPTIONS)
    third = long.encode(long.params, np.where(mask, ids, 7), mask)
    np.testing.assert_array_equal(third.tokens, other.tokens)
    np.testing.assert_array_equal(third.pooled, other.pooled)


def test_no_text_at_all_is_finite_and_zero(folder_and_model):
    encoder = bert(folder=folder_and_model[0], length=9)
    ids, mask = encoder.tokenise(CAPTIONS)
    found = encoder.encode(encoder.params, ids, np.zeros_like(mask))
    assert np.all(np.asarray(found.tokens) == 0) and np.all(np.asarray(found.pooled) == 0)


def test_a_bigger_model_around_it_is_read_too(saved):
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))
    folder = saved(model)
    encoder = bert(folder=folder, length=12)
    ids, mask = encoder.tokenise(CAPTIONS)
    found = encoder.encode(encoder.params, ids, mask)
    theirs = states(model.bert, ids, mask)
    np.testing.assert_allclose(np.asarray(found.tokens)[mask], theirs[mask], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"hidden_act": "relu"}, "hidden_act='relu'.*expected gelu"),
        ({"num_attention_heads": 5}, "5 heads for 24 channels"),
        ({"num_attention_heads": 0}, "0 heads for 24 channels"),
        ({"hidden_size": "24"}, "hidden_size='24'.*expected an int such as"),
        ({"hidden_size": -24}, "hidden_size=-24"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"hidden_size": 48}, r"of shape .*24.* in .*; expected .*48.* for its network"),
        ({"num_hidden_layers": 4}, "found no tensor bert.encoder.layer.3"),
        ({"vocab_size": 30}, r"word_embeddings.weight of shape \(40, 24\).*expected \(30, 24\)"),
    ),
)
def test_a_config_that_does_not_fit(folder_and_model, edit_json, change, message):
    folder, _ = folder_and_model
    edit_json(folder / "config.json", **change)
    with pytest.raises(UserError, match=message) as error:
        bert(folder=folder, length=9)
    assert "\n" not in str(error.value)
