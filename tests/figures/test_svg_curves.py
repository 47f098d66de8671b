"""Curves as SVG, read back by an XML parser."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from diffjax import UserError
from diffjax.figures.svg_curves import HEIGHT, MOST_POINTS, WIDTH, Line, curves, ticks

SVG = "{http://www.w3.org/2000/svg}"


def drawn(lines, **how):
    root = ET.fromstring(curves(lines, title="a <title> & more", **how))
    paths = [
        np.array([pair.split(",") for pair in line.get("points").split()], float)
        for line in root.iter(f"{SVG}polyline")
    ]
    return root, paths


def test_a_line_is_as_the_values_are():
    x = np.arange(5.0)
    _, [path] = drawn([Line("squares", x, x**2)])
    np.testing.assert_allclose(np.diff(path[:, 0]), np.diff(path[:, 0])[0], atol=0.11)
    rise = -(path[:, 1] - path[0, 1])
    np.testing.assert_allclose(rise / rise[-1], x**2 / 16, atol=2e-3)


def test_a_logarithmic_axis_makes_powers_a_straight_line():
    x = np.arange(6.0)
    _, [path] = drawn([Line("powers", x, 10.0**x)], logarithmic=True)
    np.testing.assert_allclose(np.diff(path[:, 1]), np.diff(path[:, 1])[0], atol=0.11)
    _, [path] = drawn([Line("with a zero", x, x)], logarithmic=True)
    np.testing.assert_allclose(np.diff(path[:, 1]), np.diff(path[:, 1])[0], atol=0.11)


@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0, 0.0], [-3.0, 5.0], [1e-12, 2e-12], [1e9, 3e9], [math.nan, 1.0, math.inf]],
)
def test_everything_is_within_the_picture(values):
    root, paths = drawn([Line("v", np.arange(len(values)), values)], logarithmic=True)
    for path in paths:
        assert (path >= 0).all() and (path <= [WIDTH, HEIGHT]).all()
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x")) <= WIDTH and 0 <= float(text.get("y")) <= HEIGHT


def test_a_long_line_keeps_its_outline():
    y = np.sin(np.arange(100_000) / 5000)
    y[77_777] = 5.0
    _, [path] = drawn([Line("long", np.arange(len(y)), y)])
    assert len(path) <= MOST_POINTS
    alone = drawn([Line("peak", [0, 99_999], [float(y.min()), 5.0])])[1][0]
    assert path[:, 1].min() == pytest.approx(alone[:, 1].min(), abs=0.11)


def test_ticks_are_round_and_within():
    for low, high in [(0, 1200), (-0.3, 0.7), (1e-7, 3e-7), (0.0349, 0.0355)]:
        found = ticks(low, high)
        assert 2 <= len(found) <= 8 and all(low - 1e-9 <= t <= high + 1e-9 for t in found)
        assert np.ptp(np.diff(found)) < 1e-9


def test_nothing_to_draw_is_an_error():
    with pytest.raises(UserError, match="no finite value"):
        curves([Line("lost", [1, 2], [math.nan, math.nan])], title="loss")
    with pytest.raises(UserError, match=r"expected \(N,\) each"):
        curves([Line("two", [1, 2], [1.0])], title="loss")
