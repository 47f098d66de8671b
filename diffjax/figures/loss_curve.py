"""The loss against the step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.float64]

LOSS_COLOUR = "#2563a8"
EVAL_COLOUR = "#d9622b"
LOST_COLOUR = "#b3262a"

FEWEST_TO_SMOOTH = 20


def plot_loss(
    path: str | os.PathLike[str],
    history: Sequence[Mapping[str, float]],
    *,
    title: str | None = None,
) -> None:
    """Draws the training loss and any evaluation losses as a PNG file.

    The raw loss is a thin line, its moving average a thick one (a centred window of about 1/25 of
    the rows, given 20 rows or more); evaluations are joined dots. Steps whose loss is not finite
    are ticks at the bottom. The loss axis is logarithmic unless some value is 0 or less. If a step
    has several rows (a run resumed from an earlier checkpoint), the last one is used.

    Args:
      path: the file to create or replace; missing parent folders are made.
      history: rows such as {"step": 100, "loss": 0.12, "eval_loss": 0.11}, in any order; "loss"
        and "eval_loss" may each be absent or None; other keys are ignored. May be empty.
      title: text above the axes.

    Raises:
      UserError: a path that cannot be written, or a row without "step" or with other than numbers.
    """
    path, history = arguments.path("path", path), _rows(history)
    if title is not None:
        arguments.text("title", title)
    # Not pyplot, which keeps figures alive and selects a backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps, losses = _series(history, "loss")
    eval_steps, eval_losses = _series(history, "eval_loss")
    finite, eval_finite = np.isfinite(losses), np.isfinite(eval_losses)
    lost_steps = np.union1d(steps[~finite], eval_steps[~eval_finite])
    steps, losses = steps[finite], losses[finite]
    eval_steps, eval_losses = eval_steps[eval_finite], eval_losses[eval_finite]
    drawn = np.concatenate([losses, eval_losses])

    figure = Figure(figsize=(7.2, 4.2), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if len(losses) == 1:
        axes.plot(steps, losses, "o", color=LOSS_COLOUR, markersize=5, label="loss")
    elif len(losses) < FEWEST_TO_SMOOTH:
        if len(losses):
            axes.plot(steps, losses, color=LOSS_COLOUR, linewidth=1.6, label="loss")
    else:
        smooth = moving_average(losses)
        axes.plot(steps, losses, color=LOSS_COLOUR, linewidth=0.7, alpha=0.35, label="loss")
        axes.plot(steps, smooth, color=LOSS_COLOUR, linewidth=2.0, label="loss, smoothed")
    if len(eval_losses):
        axes.plot(
            eval_steps,
            eval_losses,
            "o-",
            color=EVAL_COLOUR,
            linewidth=1.2,
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            label="evaluation loss",
        )
    if len(lost_steps):
        axes.plot(
            lost_steps,
            np.zeros_like(lost_steps),
            "|",
            color=LOST_COLOUR,
            markersize=12,
            # x in data coordinates, y as a fraction of the axes' height.
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label=f"not finite ({len(lost_steps)} step{'s' if len(lost_steps) > 1 else ''})",
        )
    if len(drawn) and drawn.min() > 0:
        _logarithmic(axes, drawn)
    if not len(drawn):
        text = "no finite loss yet" if len(lost_steps) else "no loss recorded yet"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")
        axes.set_yticks([])
    all_steps = np.concatenate([steps, eval_steps, lost_steps])
    if len(np.unique(all_steps)) == 1:
        axes.set_xlim(all_steps[0] - 1, all_steps[0] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(True, which="major", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title is not None:
        axes.set_title(title, loc="left")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper right")
    atomic_write(path, lambda file: canvas.print_png(file))


def _rows(history: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """The rows, whose steps and losses are numbers, NaN and infinity among them."""
    if isinstance(history, str | bytes | Mapping) or not hasattr(history, "__len__"):
        raise UserError(f"history is {arguments.shown(history)}: expected a list of rows")
    for i, row in enumerate(history):
        values: Any = isinstance(row, Mapping) and [
            row.get("step"), *(x for k in ("loss", "eval_loss") if (x := row.get(k)) is not None)
        ]  # fmt: skip
        if not values or any(np.ndim(x) or np.asarray(x).dtype.kind not in "iuf" for x in values):
            raise UserError(
                f'history: row {i} is {arguments.shown(row)}: expected numbers, such as {{"step": '
                '100, "loss": 0.12}'
            )
    return history


def _logarithmic(axes: Axes, drawn: FloatArray) -> None:
    """Sets a logarithmic loss axis with several ticks at any range, as plain decimals."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = drawn.min() / 1.15, drawn.max() * 1.15
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    if high / low < 4:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    else:
        between = (1, 2, 3, 5, 7) if high / low < 20 else (1, 2, 5) if high / low < 2e3 else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=between, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def _series(history: Sequence[Mapping[str, float]], key: str) -> tuple[FloatArray, FloatArray]:
    """Steps and values of the rows that have `key`, by step, the last of equal steps only."""
    by_step = {float(row["step"]): float(row[key]) for row in history if row.get(key) is not None}
    steps = sorted(by_step)
    values = [by_step[step] for step in steps]
    return np.array(steps, np.float64), np.array(values, np.float64)


def moving_average(values: FloatArray) -> FloatArray:
    """Centred mean over about 1/25 of the values, over fewer near the ends."""
    half = max(1, len(values) // 50)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    # At the start, where the loss falls steeply, the window shrinks symmetrically, or the mean
    # would be too low; at the end only its right half does, or the curve would end at the last
    # value alone.
    low = np.maximum(centre - half, 0)
    high = np.minimum(np.minimum(centre + half, 2 * centre), len(values) - 1) + 1
    return (sums[high] - sums[low]) / (high - low)
