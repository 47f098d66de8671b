"""Captions are encoded once, in their order, and a file is trusted only when it is whole."""

import sys

import numpy as np
import pytest

from diffjax.conditioning.text_encoder import encode_captions
from diffjax.errors import UserError

CAPTIONS = ["cab", "a", "bead", "cab", "a", "fade", "cab"]


def row_of(letters, caption):
    """What the encoder says of one caption alone."""
    encoder = letters().encoder
    return encoder.encode(encoder.params, *encoder.tokenise([caption]))


@pytest.mark.parametrize("batch_size", (1, 3, 4, 64))
def test_rows_are_the_captions_in_their_order(letters, tmp_path, batch_size):
    found = encode_captions(letters().encoder, CAPTIONS, cache_dir=tmp_path, batch_size=batch_size)
    assert found.tokens.shape == (7, 6, 4) and found.tokens.dtype == np.float16
    assert found.mask.shape == (7, 6) and found.mask.dtype == np.bool_
    assert found.pooled.shape == (7, 4) and found.pooled.dtype == np.float32
    for i, caption in enumerate(CAPTIONS):
        alone = row_of(letters, caption)
        np.testing.assert_allclose(found.tokens[i], alone.tokens[0], rtol=1e-3)
        np.testing.assert_array_equal(found.mask[i], alone.mask[0])
        np.testing.assert_allclose(found.pooled[i], alone.pooled[0], rtol=1e-6)


def test_each_is_encoded_once_by_one_program_and_then_read(letters, tmp_path):
    first = letters()
    made = encode_captions(first.encoder, CAPTIONS, cache_dir=tmp_path, batch_size=3)
    assert sorted(first.texts) == ["a", "bead", "cab", "fade"]
    assert first.traces == 1

    second = letters()
    read = encode_captions(second.encoder, CAPTIONS[::-1], cache_dir=tmp_path)
    assert second.texts == [] and second.traces == 0
    for one, other in zip(made, read, strict=True):
        np.testing.assert_array_equal(one, other[::-1])


def test_another_digest_or_caption_is_another_file(letters, tmp_path):
    encode_captions(letters().encoder, CAPTIONS, cache_dir=tmp_path)
    for encoder, captions in (
        (letters(digest="other"), CAPTIONS),
        (letters(), [*CAPTIONS, "ab"]),
        (letters(), ["a", "bc"]),
        (letters(), ["ab", "c"]),
    ):
        encode_captions(encoder.encoder, captions, cache_dir=tmp_path)
        assert encoder.texts == sorted(set(captions))
    assert len(list(tmp_path.iterdir())) == 5


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-200])


def one_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))


def other_shape(path):
    np.savez(path, tokens=np.zeros((4, 6, 5), np.float16), mask=np.ones((4, 6), bool),
             pooled=np.zeros((4, 4), np.float32))  # fmt: skip


class Bomb:
    def __reduce__(self):
        return sys.exit, ("a pickle was run",)


def pickled(path):
    np.savez(path, tokens=np.array([Bomb()], object), mask=np.ones((4, 6), bool),
             pooled=np.zeros((4, 4), np.float32))  # fmt: skip


def no_field(path):
    np.savez(path, tokens=np.zeros((4, 6, 4), np.float16))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", (cut_short, one_bit, other_shape, pickled, no_field, empty))
def test_a_damaged_file_is_made_again(letters, tmp_path, warnings, damage):
    made = encode_captions(letters().encoder, CAPTIONS, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    again = letters()
    found = encode_captions(again.encoder, CAPTIONS, cache_dir=tmp_path)
    assert len(again.texts) == 4
    assert len(warnings()) == 1 and str(path) in warnings()[0]
    for one, other in zip(made, found, strict=True):
        np.testing.assert_array_equal(one, other)

    third = letters()  # and the file is whole again
    encode_captions(third.encoder, CAPTIONS, cache_dir=tmp_path)
    assert third.texts == []


def test_only_empty_captions(letters, tmp_path):
    found = encode_captions(letters().encoder, ["", ""], cache_dir=tmp_path)
    assert found.tokens.shape == (2, 6, 4) and not found.mask.any()


@pytest.mark.parametrize(
    ("captions", "batch_size", "message"),
    (
        ([], 64, "no captions to encode"),
        ("a cat", 64, "put it in a list"),
        (["a", 3], 64, "expected a list of texts"),
        (["a"], 0, "batch_size is 0"),
    ),
)
def test_wrong_arguments(letters, tmp_path, captions, batch_size, message):
    with pytest.raises(UserError, match=message) as error:
        encode_captions(letters().encoder, captions, cache_dir=tmp_path, batch_size=batch_size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", (np.nan, 1e6))
def test_features_that_are_no_float16_are_refused_and_not_kept(letters, tmp_path, value):
    encoder = letters().encoder
    encoder.params["table"][1] = value
    with pytest.raises(UserError, match="letters gave NaN or features beyond float16"):
        encode_captions(encoder, CAPTIONS, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_is_a_file(letters, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        encode_captions(letters().encoder, CAPTIONS, cache_dir=tmp_path / "file")
