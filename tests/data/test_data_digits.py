"""The bundled digits."""

import numpy as np
import pytest

from diffjax.data import has_split, load
from diffjax.errors import UserError


def test_digits_are_split_and_scaled():
    from sklearn import datasets

    digits = datasets.load_digits()
    train, test = load("digits"), load("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.image_shape == (8, 8, 1)
    assert train.class_names == tuple("0123456789")
    # Back to 0..16, every fifth image is in "test" and the others in "train", in their order.
    for source, rows in ((train, np.arange(1797) % 5 > 0), (test, np.arange(1797) % 5 == 0)):
        values = np.stack([source[i]["image"] for i in range(len(source))])[..., 0]
        assert values.dtype == np.uint8 and values.max() == 255
        assert (np.rint(values / 255 * 16) == digits.images[rows]).all()
        labels = [int(source[i]["label"]) for i in range(len(source))]
        assert labels == digits.target[rows].tolist()


def test_digits_take_a_size_and_channels():
    source = load("digits", image_size=16, channels=3)
    assert source.image_shape == (16, 16, 3)
    image = source[0]["image"]
    assert (image[..., 0] == image[..., 1]).all()


def test_has_split_and_errors():
    assert has_split("digits", split="test") and not has_split("digits", split="val")
    with pytest.raises(UserError, match="train, test"):
        load("digits", split="val")
    with pytest.raises(UserError, match="does not apply"):
        load("digits", data_dir="/somewhere")
    assert len(load("digits", data_dir="")) == 1437


@pytest.mark.parametrize("name", ["mnist", "", "folder:", "tfds:", "zip:x", "Digits"])
def test_an_unknown_name_gets_the_valid_ones(name):
    for call in (load, lambda n: has_split(n, split="train")):
        with pytest.raises(UserError, match=r"fashion_mnist, digits, tfds:.*folder:"):
            call(name)


@pytest.mark.parametrize(
    "arguments", [{"image_size": 0}, {"image_size": 8.0}, {"channels": 2}, {"channels": 4}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(UserError, match="expected"):
        load("digits", **arguments)
