"""Text encoders and vocabularies name a wrong argument in one line."""

import pytest

from diffjax.conditioning.bert import bert
from diffjax.conditioning.clip import clip
from diffjax.conditioning.t5 import t5
from diffjax.conditioning.text_encoder import encode_captions
from diffjax.conditioning.vocabulary import Vocabulary
from tests.messages import refuses


@pytest.mark.parametrize("encoder", [clip, t5, bert])
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"folder": None}, "folder"), ({"folder": 3}, "folder"), ({"folder": ["a"]}, "folder"),
        ({"folder": "$NOT_SET_ANYWHERE/model"}, "NOT_SET_ANYWHERE"),
        ({"length": -1}, "length"), ({"length": "8"}, "length"), ({"length": 2.5}, "length"),
        ({"length": True}, "length"), ({"length": None}, "length"), ({}, "nowhere"),
    ],
)  # fmt: skip
def test_a_text_encoder_of_a_folder(encoder, changes, word, tmp_path):
    refuses(lambda: encoder(**{"folder": tmp_path / "nowhere", **changes}), word)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"captions": "one text"}, "captions"), ({"captions": None}, "captions"),
        ({"captions": [1]}, "captions"), ({"captions": []}, "captions"),
        ({"batch_size": 0}, "batch_size"), ({"batch_size": "2"}, "batch_size"),
    ],
)  # fmt: skip
def test_captions_to_encode(changes, word, tmp_path):
    right = {"captions": ["a"], "batch_size": 2} | changes
    captions = right.pop("captions")
    refuses(lambda: encode_captions(None, captions, cache_dir=tmp_path, **right), word)


@pytest.mark.parametrize("length", [0, -1, "8", 2.5, None])
def test_the_length_of_a_vocabulary(length):
    refuses(lambda: Vocabulary(("a",), length), "length")
