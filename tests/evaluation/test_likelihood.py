"""Bits per dimension over a data set: which images, how they are batched, what is summed up."""

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.evaluation.likelihood import evaluate_likelihood


class Images:
    """Images whose first pixel is their number."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {"image": np.full((2, 3, 1), i, np.uint8), "label": i % 10}


def measure(batch, numbers):
    assert batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], numbers)
    np.testing.assert_array_equal(batch["label"], numbers % 10)
    value = numbers.astype(np.float32)
    return {"total": value, "half": value / 2, "steps": np.stack([value, value], 1)}


@pytest.mark.parametrize("batch_size", [4, 7, 10, 100])
def test_every_image_once_whatever_the_batch(batch_size):
    sizes = []

    def counted(batch, numbers):
        sizes.append(len(numbers))
        return measure(batch, numbers)

    report, each = evaluate_likelihood(
        counted, Images(10), what="bound", split="test", batch_size=batch_size
    )
    np.testing.assert_array_equal(each["index"], np.arange(10))
    np.testing.assert_array_equal(each["total"], np.arange(10))
    assert each["steps"].shape == (10, 2)
    assert len(set(sizes)) == 1  # one compiled shape
    assert report["images"] == 10 and report["of"] == "10 of the 10 test images"
    assert report["bits_per_dim"] == pytest.approx(4.5)
    # sqrt(sum (i - 4.5)^2 / 9 / 10) of 0..9
    assert report["standard_error"] == pytest.approx((82.5 / 9 / 10) ** 0.5)
    assert report["parts"] == {"half": pytest.approx(2.25)}
    assert "over the 6 values of 2x3x1" in report["counted"]


def test_fewer_images_are_spread_over_the_set():
    _, each = evaluate_likelihood(
        measure, Images(100), what="bound", split="test", num_images=4, batch_size=3
    )
    np.testing.assert_array_equal(each["index"], [0, 25, 50, 75])
    _, each = evaluate_likelihood(
        measure, Images(5), what="bound", split="test", num_images=50, batch_size=3
    )
    np.testing.assert_array_equal(each["index"], np.arange(5))


def test_a_number_that_is_not_finite_is_no_mean():
    def lost(batch, numbers):
        return {"total": np.where(numbers == 3, np.nan, 1.0)}

    with pytest.raises(UserError, match="1 of 10 images have no finite likelihood"):
        evaluate_likelihood(lost, Images(10), what="", split="test", batch_size=4)
