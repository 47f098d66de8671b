"""The curve of distances against scales."""

import numpy as np
import pytest
from PIL import Image

from diffjax.errors import UserError
from diffjax.figures import plot_scales


def reports(distances, floor):
    return [
        {"scale": scale, "frechet_distance": distance, "features": "classifier",
         "num_samples": 2000,
         "floor_equal_count": floor, "floor_equal_count_images": 2000}
        for scale, distance in distances.items()
    ]  # fmt: skip


def test_the_order_of_the_reports_does_not_matter_and_the_floor_shows(tmp_path):
    distances = {1.0: 1.2, 1.5: 0.4, 3.0: 3.1}
    backwards = dict(reversed(distances.items()))
    for name, what in (
        ("a", reports(distances, 0.2)),
        ("b", reports(backwards, 0.2)),
        ("c", reports(distances, None)),
    ):
        plot_scales(tmp_path / f"{name}.png", what)
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert a.shape == c.shape and (a != c).any()


def test_another_setting_than_the_scale(tmp_path):
    by_level = [
        {"augmentation_level" if key == "scale" else key: value for key, value in report.items()}
        for report in reports({0.0: 1.2, 0.1: 0.4}, 0.2)
    ]
    how = {"over": "augmentation_level"}
    plot_scales(tmp_path / "a.png", by_level, **how)
    plot_scales(tmp_path / "b.png", by_level, label="augmentation level s", **how)
    plot_scales(tmp_path / "c.png", reports({0.0: 1.2, 0.1: 0.4}, 0.2))
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    np.testing.assert_array_equal(a, c)
    assert a.shape == b.shape and (a != b).any()
    with pytest.raises(UserError, match='each with its "augmentation_level"'):
        plot_scales(tmp_path / "d.png", reports({0.0: 1.2}, 0.2), **how)
