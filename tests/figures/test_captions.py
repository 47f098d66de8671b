"""Texts under images."""

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.figures import captioned


def test_the_picture_stays_and_the_text_stands_under_it():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    made = captioned(images, ["red apple", "a"], scale=8)
    assert made.shape[0] == 2 and made.shape[2:] == (64, 3)
    np.testing.assert_array_equal(made[:, :64:8, ::8], images)
    below = made[:, 64:]
    assert (below < 128).any((1, 2, 3)).all()
    assert (below[0] < 128).sum() > (below[1] < 128).sum()


def test_long_texts_are_broken_into_lines_within_the_width():
    images = np.zeros((1, 8, 8, 1), np.uint8)
    short, long = (captioned(images, [text], scale=8) for text in ("apple", "apple " * 6))
    assert long.shape[1] > short.shape[1]
    assert captioned(images, ["word " * 100], scale=8).shape[1] < 64 + 80
    one = captioned(images, ["x" * 200], scale=8)
    assert one.shape[2] == 64


def test_one_caption_an_image():
    with pytest.raises(UserError, match="1 captions for 2 images"):
        captioned(np.zeros((2, 8, 8, 1), np.uint8), ["a"])
