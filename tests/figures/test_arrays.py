"""What is drawn of data that is no image."""

import numpy as np
import pytest
from PIL import Image

from diffjax import figures
from diffjax.errors import UserError

RANDOM = np.random.default_rng(0)


def coloured(sheet):
    """The share of pixels that are neither white nor grey."""
    spread = sheet.max(-1).astype(int) - sheet.min(-1)
    return float((spread > 40).mean())


def test_points_are_a_scatter_plot_coloured_by_class():
    points = RANDOM.normal(size=(300, 2))
    one = figures.array_sheet(points)
    two = figures.array_sheet(points, np.arange(300) % 2, ("a", "b"))
    assert one.dtype == np.uint8 and one.shape[-1] == 3
    assert 0.005 < coloured(one) < 0.2
    hues = {
        tuple(pixel) for pixel in two.reshape(-1, 3) if int(pixel.max()) - int(pixel.min()) > 120
    }
    assert any(r > b for r, _, b in hues) and any(b > r for r, _, b in hues)


@pytest.mark.parametrize("shape", [(5, 7), (5, 32, 1), (20, 32, 3), (3, 4, 2, 2, 2)])
def test_other_arrays_are_lines_in_panels(shape):
    sheet = figures.array_sheet(RANDOM.normal(size=shape), np.zeros(shape[0], int), ("tone",))
    assert coloured(sheet) > 0.002


def test_maps_are_images_of_their_first_channels():
    maps = np.zeros((4, 8, 8, 4), np.float32)
    maps[:, :4, :, 0] = 3.0
    sheet = figures.array_sheet(maps)
    assert sheet.shape[-1] == 3
    assert (sheet[..., 0].max() > 200) and sheet[20, 20, 0] > sheet[20, 20, 1]
    assert figures.array_sheet(maps[..., :1]).shape[-1] == 1


@pytest.mark.parametrize("shape", [(9, 40, 2), (9, 6, 32, 1), (9, 6, 8, 8, 4)])
def test_a_trajectory_is_a_sheet_and_an_animation(tmp_path, shape):
    path = np.cumsum(RANDOM.normal(size=shape), axis=0)
    figures.save_array_pictures(tmp_path / "a.png", tmp_path / "a.gif", path)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 9
    assert Image.open(tmp_path / "a.png").size[0] > 300
    assert len(figures.array_frames(path, pictures=4)) == 4


@pytest.mark.parametrize(
    "samples", [np.zeros((0, 2)), np.zeros(3), np.full((3, 2), np.nan)], ids=["none", "flat", "nan"]
)
def test_what_can_not_be_drawn_is_refused(samples):
    with pytest.raises(UserError, match="expected at least one, all values finite"):
        figures.array_sheet(samples)
