"""Avatars drawn from the parts of DiceBear's pixel-art style, as its archive of npm has them.

A part is a line of JavaScript with a few SVG paths in it, which is read and not run. All its edges
are on a grid of 16x16 cells, so a cell is within a path or not by the winding number of its middle,
and a picture is exact at any multiple of 16 pixels.

In one thing these pictures are not the style's own: its beards are drawn through a mask of the
luminance of the hair's colour, by which a dark beard can hardly be seen. Here the mask's path is
filled with that colour itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from avatar_names import FRAMES, HAT_COLOURS, LIPS, PARTS, PUPILS

GRID = 16
LAYERS = ("clothing", "eyes", "glasses", "beard", "mouth", "hair", "hat")  # from the back

_ATTRIBUTE = {"clothing": "clothes"}  # the style's name of a part: this set's attribute
_LINE = re.compile(r"^ +(\w+): \(components, colors\) => `(.*)`,$", re.MULTILINE)
_COLOUR = re.compile(r"\$\{escape\.xml\(`\$\{colors\.(\w+)\}`\)\}")
_HEAD = re.compile(r"body: `((?:<path [^>]*/>)+)")
_TOKEN = re.compile(r"[A-Za-z]|-?\d+")
_KNOWN = {"d", "fill", "fill-opacity", "opacity", "fill-rule", "clip-rule"}


@dataclass(frozen=True)
class Shape:
    """A path: the cells within it, bool (16, 16), and what they are painted with."""

    cells: np.ndarray
    fill: str  # "#rgb", "#rrggbb" or the name of a part, whose colour it takes
    opacity: float


Shapes = tuple[Shape, ...]


def read_style(members: Mapping[str, bytes]) -> dict[tuple[str, str], Shapes]:
    """Returns {(part, variant): its shapes} of an archive's files; ("head", "") is the head.

    Raises:
      ValueError: they are not as expected.
    """
    style = {}
    for part in LAYERS:
        text = members[f"package/lib/components/{part}.js"].decode()
        found = dict(_LINE.findall(text))
        for variant in filter(None, PARTS[_ATTRIBUTE.get(part, part)].values()):
            if variant not in found:
                raise ValueError(f"{part}.js has no {variant}")
            style[part, variant] = shapes(found[variant])
    head = _HEAD.search(members["package/lib/index.js"].decode())
    if head is None:
        raise ValueError("index.js has no head")
    style["head", ""] = shapes(head[1])
    return style


def shapes(text: str) -> Shapes:
    """Returns the shapes of SVG's paths; colours may be the style's own expressions.

    Of a mask, the paths within it are taken, and not what is seen through it.

    Raises:
      ValueError: SVG with something else than paths whose edges are along the grid.
    """
    try:
        root = ElementTree.fromstring("<svg>" + _COLOUR.sub(r"\1", text) + "</svg>")
    except ElementTree.ParseError as error:
        raise ValueError(f"no SVG: {error}") from error
    return tuple(_shapes_of(root, {}))


def _shapes_of(element: ElementTree.Element, inherited: dict[str, str]) -> list[Shape]:
    found = []
    for child in element:
        if "mask" in child.attrib:
            continue
        given = {**inherited, **child.attrib}
        if child.tag == "path":
            if set(given) - _KNOWN:
                raise ValueError(f"a path with {', '.join(sorted(set(given) - _KNOWN))}")
            winding = winding_numbers(given["d"])
            even_odd = given.get("fill-rule") == "evenodd"
            cells = winding % 2 == 1 if even_odd else winding != 0
            opacity = float(given.get("fill-opacity", 1)) * float(given.get("opacity", 1))
            found.append(Shape(cells, given["fill"], opacity))
        elif child.tag in ("g", "mask"):
            # A mask's own attributes are its place and its name.
            found += _shapes_of(child, given if child.tag == "g" else inherited)
        else:
            raise ValueError(f"<{child.tag}>")
    return found


def winding_numbers(path: str) -> np.ndarray:
    """Returns how often a path goes round the middle of each cell: int (16, 16).

    Every vertical edge counts for all cells at its right: +1 downwards, -1 upwards.

    Raises:
      ValueError: a path with other commands than M, H, V and Z, or their relative forms.
    """
    winding = np.zeros((GRID, GRID), int)
    tokens = _TOKEN.findall(path)
    if "".join(tokens) != re.sub(r"[\s,]", "", path):
        raise ValueError(f"a path with other than whole numbers: {path}")
    x = y = start_x = start_y = 0

    def down_to(new_y: int) -> None:
        top, bottom = sorted((max(y, 0), max(new_y, 0)))
        winding[top:bottom, max(x, 0) :] += np.sign(new_y - y)

    at = 0
    while at < len(tokens):
        command = tokens[at]
        count = {"M": 2, "H": 1, "V": 1, "Z": 0}.get(command.upper())
        if count is None:
            raise ValueError(f"a path with {command}: {path}")
        numbers = [int(token) for token in tokens[at + 1 : at + 1 + count]]
        at += 1 + count
        relative = command.islower()
        if command in "Mm":
            down_to(start_y)  # what is filled is closed
            x = start_x = numbers[0] + (x if relative else 0)
            y = start_y = numbers[1] + (y if relative else 0)
        elif command in "Hh":
            x = numbers[0] + (x if relative else 0)
        elif command in "Vv":
            new_y = numbers[0] + (y if relative else 0)
            down_to(new_y)
            y = new_y
        else:
            down_to(start_y)
            x, y = start_x, start_y
    down_to(start_y)
    return winding


def shapes_of(style: Mapping[tuple[str, str], Shapes], avatar: Mapping[str, str]) -> list[Shape]:
    """Returns an avatar's shapes from the back, filled with colours, of {attribute: value}."""
    colour = {
        "skin": PARTS["skin"][avatar["skin"]],
        "hair": PARTS["hair_colour"][avatar["hair_colour"]],
        "clothing": PARTS["clothes_colour"][avatar["clothes_colour"]],
        "hat": HAT_COLOURS.get(avatar["hat"], ""),
        "eyes": PUPILS,
        "mouth": LIPS,
        "glasses": FRAMES,
    }
    found = [Shape(np.ones((GRID, GRID), bool), PARTS["background"][avatar["background"]], 1.0)]
    layers = [("head", "")]
    for part in LAYERS:
        attribute = _ATTRIBUTE.get(part, part)
        layers.append((part, PARTS[attribute][avatar[attribute]]))
    for part, variant in layers:
        if part == "head" or variant:
            found += [
                Shape(shape.cells, colour.get(shape.fill, shape.fill), shape.opacity)
                for shape in style[part, variant]
            ]
    return found


def paint(found: list[Shape], *, size: int = 32) -> np.ndarray:
    """Returns uint8 (size, size, 3) of shapes that are laid over each other on black.

    Args:
      found: shapes with colours as fills.
      size: a multiple of 16.
    """
    canvas = np.zeros((GRID, GRID, 3))
    for shape in found:
        canvas[shape.cells] += shape.opacity * (rgb(shape.fill) - canvas[shape.cells])
    cells = np.round(canvas).astype(np.uint8)
    return cells.repeat(size // GRID, axis=0).repeat(size // GRID, axis=1)


def rgb(colour: str) -> np.ndarray:
    """Returns float (3,) of "#rgb" or "#rrggbb".

    >>> rgb("#fff").tolist(), rgb("#0a1400").tolist()
    ([255.0, 255.0, 255.0], [10.0, 20.0, 0.0])
    """
    digits = colour.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)], float)
