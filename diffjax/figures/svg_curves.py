"""Curves as SVG, to be part of an HTML page: colours are the page's, and nothing is fetched.

A page colours a line by its class, "line-0", "line-1" and so on, text by "tick" and "label", and
the grid by "grid".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffjax import arguments
from diffjax.errors import UserError

FloatArray = npt.NDArray[np.float64]

WIDTH, HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 10, 26
MOST_POINTS = 600  # of a line; of more, each stretch has its smallest and its largest value
_LOGARITHMIC_FROM = 8  # times that the largest value is the smallest, of a logarithmic axis


class Line(NamedTuple):
    """Values against x, in order of x; what is not finite is a gap.

    Attributes:
      name: in the legend.
      x, y: (N,) each.
      colour: number of the class "line-<colour>".
      style: "line", "thin" (a faint one, of raw values) or "dots" (joined ones).
    """

    name: str
    x: Sequence[float] | FloatArray
    y: Sequence[float] | FloatArray
    colour: int = 0
    style: str = "line"


def curves(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str = "step",
    logarithmic: bool = False,
    marks: Sequence[float] = (),
) -> str:
    """Lines against one pair of axes, as an <svg> element.

    Args:
      lines: what is drawn; at least one finite value among them.
      title: for readers who don't see the picture.
      x_label: of the horizontal axis.
      logarithmic: whether the values' axis is logarithmic where it can be: all are positive, and
        they span a factor of 8 or more.
      marks: x of dashed vertical lines.

    Raises:
      UserError: no finite value, or x and y of two lengths.
    """
    points = [_finite(line) for line in lines]
    shown = [pair for pair in points if len(pair[0])]
    if not shown:
        raise UserError(f"{title}: no finite value: expected one to draw")
    every_x, every_y = (np.concatenate([pair[axis] for pair in shown]) for axis in (0, 1))
    low, high = float(every_y.min()), float(every_y.max())
    logarithmic = logarithmic and low > 0 and high / low >= _LOGARITHMIC_FROM
    to_x = _Axis.of(float(every_x.min()), float(every_x.max()), _LEFT, WIDTH - _RIGHT)
    to_y = _Axis.of(low, high, HEIGHT - _BOTTOM, _TOP, logarithmic=logarithmic, margin=0.06)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    ]
    for value in ticks(to_y.low, to_y.high, logarithmic=logarithmic):
        y = to_y(value)
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
            f"{number(value)}</text>",
        ]
    for value in ticks(to_x.low, to_x.high, most=5):
        if to_x(value) < _LEFT + 12:
            continue  # the axis's label is there
        parts.append(
            f'<text class="tick" x="{to_x(value):.1f}" y="{HEIGHT - 9}" text-anchor="middle">'
            f"{number(value)}</text>"
        )
    parts.append(
        f'<text class="label" x="{_LEFT - 6}" y="{HEIGHT - 9}" text-anchor="end">'
        f"{escape(x_label)}</text>"
    )
    for mark in marks:
        if to_x.low <= mark <= to_x.high:
            at = to_x(mark)
            parts.append(
                f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" '
                f'y2="{HEIGHT - _BOTTOM}"/>'
            )
    for line, values in zip(lines, points, strict=True):
        pairs = zip(*_thinned(*values), strict=True)
        parts += _drawn(line, [(to_x(a), to_y(b)) for a, b in pairs])
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, *, most: int = 6, logarithmic: bool = False) -> list[float]:
    """At most about `most` round numbers from low to high.

    >>> ticks(0.0, 1200.0, most=5)
    [0.0, 250.0, 500.0, 750.0, 1000.0]
    >>> ticks(0.03, 2.0, logarithmic=True)
    [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    """
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        for heads in ((1, 2, 5), (1, 3), (1,)):
            found = [
                round(head * 10.0**power, 12 - power)
                for power in range(first, last + 1)
                for head in heads
                if low <= head * 10.0**power * (1 + 1e-9) and head * 10.0**power <= high
            ]
            if len(found) <= most + 1:
                return found
        return found[:: math.ceil(len(found) / most)]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(head * power for head in (1, 2, 2.5, 5, 10) if head * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's number, short.

    >>> number(1500), number(25000), number(0.002), number(0.0000125)
    ('1500', '25k', '0.002', '1.25e-5')
    """
    if abs(value) >= 1e4:
        short = f"{value / 1e6:.4g}M" if abs(value) >= 1e6 else f"{value / 1e3:.4g}k"
        return short if abs(value) < 1e10 else f"{value:.3g}"
    text = f"{value:.4g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


class _Axis(NamedTuple):
    """A value's place in the picture."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def of(
        cls, low: float, high: float, start: float, end: float, *,
        logarithmic: bool = False, margin: float = 0.0,
    ) -> _Axis:  # fmt: skip
        if logarithmic:
            wider = (high / low) ** margin
            return cls(low / wider, high * wider, start, end, True)
        if high == low:  # one point, or a constant
            low, high, margin = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5), 0.0
        wider = (high - low) * margin
        return cls(low - wider, high + wider, start, end, False)

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def _finite(line: Line) -> tuple[FloatArray, FloatArray]:
    x, y = (
        arguments.array(name, values, expected="numbers").astype(np.float64)
        for name, values in (("x", line.x), ("y", line.y))
    )
    if x.ndim != 1 or x.shape != y.shape:
        raise UserError(f"{line.name}: x and y are {x.shape} and {y.shape}: expected (N,) each")
    kept = np.isfinite(x) & np.isfinite(y)
    return x[kept], y[kept]


def _thinned(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """At most MOST_POINTS points with the same outline."""
    if len(x) <= MOST_POINTS:
        return x, y
    rows: list[int] = []
    for part in np.array_split(np.arange(len(x)), MOST_POINTS // 2):
        rows += sorted({int(part[y[part].argmin()]), int(part[y[part].argmax()])})
    return x[rows], y[rows]


def _drawn(line: Line, points: Sequence[tuple[float, float]]) -> list[str]:
    if not points:
        return []
    kind = f"line-{line.colour} {line.style}"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    found = [f'<polyline class="{kind}" points="{path}"/>']
    if line.style == "dots" or len(points) == 1:
        found += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
    return found
