"""Names in any script are drawn, and two names never look alike."""

import numpy as np
import pytest
from PIL import ImageFont

from diffjax.figures.arrays import array_sheet
from diffjax.figures.captions import captioned
from diffjax.figures.image_grids import image_grid
from diffjax.figures.lettering import Lettering, drawable, in_matplotlib

IMAGES = np.zeros((2, 8, 8, 1), np.uint8)


def test_letters_that_no_font_has_are_code_points():
    assert drawable("猫", wide=True) == "U+732B"
    assert drawable("caf\udce9", wide=False) == r"caf\xe9"
    assert drawable("T-shirt\n und Öl", wide=True) == "T-shirt und Öl"


@pytest.mark.parametrize(
    "names", [("猫", "犬"), ("кот", "пёс"), ("\udce9", "\udcea"), ("🙂", "🙃")]
)
def test_two_names_never_look_alike(names):
    first, second = (
        image_grid(IMAGES, columns=1, scale=4, row_labels=[name] * 2) for name in names
    )
    assert first.shape != second.shape or (first != second).any()
    below = captioned(IMAGES, names, scale=12)[:, 96:]
    assert (below[0] != below[1]).any()


def test_cyrillic_is_drawn_and_not_spelled():
    assert Lettering(["кот"], 12).texts == ["кот"]


@pytest.mark.parametrize("length", [20, 250, 5000])
def test_a_long_name_leaves_room_for_the_images(length):
    sheet = image_grid(IMAGES, columns=1, scale=4, row_labels=["x" * length + "a", "b" * length])
    assert sheet.shape[1] < 300


def test_a_name_is_cut_in_its_middle_to_the_width():
    lettering = Lettering(["left" + "m" * 50 + "right"], 12)
    cut = lettering.cut(lettering.texts[0], 100.0)
    assert cut.startswith("left") and cut.endswith("right") and "..." in cut
    assert ImageFont.load_default(12).getlength(cut) <= 100.0
    assert lettering.cut("short", 100.0) == "short"


def test_a_legend_shows_names_as_they_are():
    """Matplotlib reads $...$ as a formula, which need not parse, and hides a leading underscore."""
    points = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    labels = np.arange(8) % 2
    named = array_sheet(points, labels=labels, names=(r"$\frac$", "_hidden"))
    other = array_sheet(points, labels=labels, names=(r"$\frac$", "_other"))
    assert named.shape != other.shape or (named != other).any()
    assert in_matplotlib("_a") == " _a"
