"""Words as numbers: what is a word, what is kept, and that nothing is lost in silence."""

import json

import numpy as np
import pytest

from diffjax.conditioning.vocabulary import PADDING, UNKNOWN, Vocabulary, split_words
from diffjax.errors import UserError

CAPTIONS = ["A red cat.", "the BLUE cat, 12 dogs", "Été à Paris"]


@pytest.mark.parametrize(
    ("caption", "words"),
    (
        ("A red-haired CAT's hat", ["a", "red", "haired", "cat", "s", "hat"]),
        ("3 dogs, 007 & R2D2", ["3", "dogs", "007", "r", "2", "d", "2"]),
        ("snake_case", ["snake", "case"]),
        ("Кошка и ΓΆΤΑ", ["кошка", "и", "γάτα"]),
        ("e\u0301te\u0301", ["\u00e9t\u00e9"]),
        ("ﬁsh", ["fish"]),
        ("?! ...", []),
        ("", []),
    ),
)
def test_words(caption, words):
    assert split_words(caption) == words


def test_known_captions_come_back_word_by_word():
    vocabulary = Vocabulary.of(CAPTIONS, length=6)
    ids, mask = vocabulary.tokenise(CAPTIONS)
    assert ids.dtype == np.int32 and mask.dtype == np.bool_ and ids.shape == (3, 6)
    assert mask.sum(1).tolist() == [3, 5, 3]
    assert np.all(ids[~mask] == PADDING) and np.all(ids[mask] > UNKNOWN)
    assert ids.max() == vocabulary.size - 1
    for row, caption in enumerate(CAPTIONS):
        known = [vocabulary.words[i - 2] for i in ids[row][mask[row]]]
        assert known == split_words(caption)


def test_it_does_not_depend_on_the_order_of_captions():
    assert Vocabulary.of(CAPTIONS) == Vocabulary.of(reversed(CAPTIONS))
    assert Vocabulary.of(CAPTIONS, length=4) != Vocabulary.of(CAPTIONS, length=5)


def test_unknown_words_are_warned_of_once(warnings):
    vocabulary = Vocabulary.of(CAPTIONS)
    vocabulary.tokenise(["red cat"])
    assert warnings() == []
    ids, mask = vocabulary.tokenise(["a green cat", "green zebra"])
    assert (ids == UNKNOWN).sum() == 3 and mask.sum() == 5
    assert len(warnings()) == 1 and "2 words" in warnings()[0] and "zebra" in warnings()[0]
    vocabulary.tokenise(["zebra"])
    assert len(warnings()) == 1
    vocabulary.tokenise(["yak"])
    assert len(warnings()) == 2 and "zebra" not in warnings()[1]


def test_cut_captions_are_warned_of_once(warnings):
    vocabulary = Vocabulary.of(CAPTIONS, length=2)
    ids, mask = vocabulary.tokenise(["a red cat", "red cat"])
    assert mask.all() and [vocabulary.words[i - 2] for i in ids[0]] == ["a", "red"]
    assert len(warnings()) == 1 and "1 captions were cut to 2 words" in warnings()[0]
    vocabulary.tokenise(["a red cat"])
    assert len(warnings()) == 1


def test_json_keeps_it():
    vocabulary = Vocabulary.of(CAPTIONS, length=7)
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again == vocabulary and again.size == vocabulary.size
    for one, other in zip(again.tokenise(CAPTIONS), vocabulary.tokenise(CAPTIONS), strict=True):
        np.testing.assert_array_equal(one, other)
    # Inside of a bigger JSON, too.
    kept = json.loads(json.dumps({"vocabulary": json.loads(vocabulary.to_json())}))
    assert Vocabulary.from_json(json.dumps(kept["vocabulary"])) == vocabulary


@pytest.mark.parametrize(
    "text",
    ("", "[]", "3", "{}", '{"words": ["a"]}', '{"words": "ab", "length": 2}',
     '{"words": [1], "length": 2}', '{"words": ["a"], "length": "2"}'),
)  # fmt: skip
def test_json_of_something_else(text):
    with pytest.raises(UserError, match="cannot read a vocabulary") as error:
        Vocabulary.from_json(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: Vocabulary.of([]), "found no word"),
        (lambda: Vocabulary.of(["?!", ""]), "found no word"),
        (lambda: Vocabulary.of("a cat"), "expected a list of texts"),
        (lambda: Vocabulary.of(CAPTIONS, length=0), "length is 0"),
        (lambda: Vocabulary(("a", "a"), 3), "repeated words"),
    ),
)
def test_wrong_arguments(make, message):
    with pytest.raises(UserError, match=message):
        make()
