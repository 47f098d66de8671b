"""Pictures of floating-point data: points, lines, and maps such as latents."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.figures.image_files import save_gif, save_png
from diffjax.figures.image_grids import image_grid
from diffjax.figures.lettering import in_matplotlib

LINES = 16  # samples drawn as lines, one per panel
PANELS = 4  # per row
STATES = 6  # states of a trajectory in one sheet
ROWS = 10  # samples of a trajectory of maps, one per row


def array_sheet(
    samples: npt.ArrayLike, labels: npt.ArrayLike | None = None, names: Sequence[str] = ()
) -> npt.NDArray[np.uint8]:
    """Samples as one picture.

    (N, 2) is a scatter plot; (N, H, W, C) are images of the first three channels, or of the first
    if there are fewer, scaled to the range of the values; (N, D), (N, L, C) and others are lines
    over their first axis, a panel for each of the first `LINES` samples and a line per channel.

    Args:
      samples: floats (N, ...).
      labels: (N,) integers that colour the points, -1 for no class; None for one colour.
      names: class names in the order of the labels.

    Returns:
      uint8 (H, W, 3).

    Raises:
      UserError: no samples, or values that are not finite.
    """
    samples, names = _checked("samples", samples), arguments.texts("names", names)
    if labels is not None:
        labels = np.array(arguments.wholes("labels", labels))
        if len(labels) != len(samples):
            raise UserError(
                f"got {len(labels)} labels for {len(samples)} samples; expected one per sample"
            )
    if _is_points(samples):
        figure = _figure(5, 5)
        _scatter(figure.add_subplot(), samples, labels, names)
        return _drawn(figure)
    if samples.ndim == 4:
        return image_grid(_maps(samples, _range(samples)), scale=_scale(samples))
    return _lines(samples, labels, names)


def array_strip(trajectory: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """A trajectory (K+1, N, ...) from noise (left) to samples (right): uint8 (H, W, 3)."""
    states = _checked("trajectory", trajectory, axes=3)
    chosen = np.rint(np.linspace(0, len(states) - 1, min(STATES, len(states)))).astype(int)
    if states.ndim == 5:
        shown = states[chosen, :ROWS].swapaxes(0, 1).reshape(-1, *states.shape[2:])
        return image_grid(
            _maps(shown, _range(states[-1])), columns=len(chosen), scale=_scale(shown)
        )
    figure = _figure(2.5 * len(chosen), 2.7)
    for place, k in enumerate(chosen):
        axes = figure.add_subplot(1, len(chosen), place + 1)
        _one_state(axes, states[k], limits=_limits(states[k]))
        axes.set_title(f"{k} of {len(states) - 1}", fontsize=9)
    return _drawn(figure)


def array_frames(trajectory: npt.ArrayLike, *, pictures: int = 40) -> list[npt.NDArray[np.uint8]]:
    """A trajectory (K+1, N, ...) as frames for `save_gif`, all on one scale."""
    states = _checked("trajectory", trajectory, axes=3)
    pictures = arguments.whole("pictures", pictures, least=1)
    chosen = np.rint(np.linspace(0, len(states) - 1, min(pictures, len(states)))).astype(int)
    if states.ndim == 5:
        limits = _range(states[-1])
        return [image_grid(_maps(states[k], limits), scale=_scale(states[k])) for k in chosen]
    limits = _limits(states[-1], states[0])
    frames = []
    for k in chosen:
        figure = _figure(4, 4)
        _one_state(figure.add_subplot(), states[k], limits=limits)
        frames.append(_drawn(figure))
    return frames


def save_array_pictures(
    sheet: str | os.PathLike[str],
    animation: str | os.PathLike[str],
    trajectory: npt.ArrayLike,
) -> None:
    """Writes a trajectory as a sheet (PNG) and as an animation (GIF)."""
    sheet, animation = arguments.path("sheet", sheet), arguments.path("animation", animation)
    save_png(sheet, array_strip(trajectory))
    save_gif(animation, array_frames(trajectory), milliseconds=120, hold_last=2000)


def _checked(name: str, samples: npt.ArrayLike, *, axes: int = 2) -> npt.NDArray[Any]:
    array = arguments.array(name, samples, expected="floats (N, ...)")
    if array.ndim < axes or array.size == 0 or not np.isfinite(array).all():
        raise UserError(
            f"got {name} of shape {array.shape} to draw; expected at least one, all values finite, "
            f"and {axes} axes or more"
        )
    return array


def _is_points(samples: npt.NDArray[Any]) -> bool:
    return samples.ndim == 2 and samples.shape[1] == 2


def _maps(samples: npt.NDArray[Any], limits: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """(N, H, W, C) as images of three channels, or of one."""
    shown = samples[..., : 3 if samples.shape[-1] >= 3 else 1]
    low, high = limits
    return np.clip(255 * (shown - low) / (high - low), 0, 255).astype(np.uint8)


def _scale(samples: npt.NDArray[Any]) -> int:
    """The integer factor that enlarges small maps to about 48 pixels."""
    return max(1, round(48 / max(samples.shape[1:3])))


def _figure(width: float, height: float) -> Any:
    # Not pyplot, which keeps figures alive and selects a backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: Any) -> npt.NDArray[np.uint8]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _scatter(axes: Any, points: Any, labels: Any, names: Sequence[str]) -> None:
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=6, alpha=0.7, linewidths=0)
    else:
        for label in np.unique(labels):
            of = points[labels == label]
            name = in_matplotlib(names[label]) if 0 <= label < len(names) else "no class"
            axes.scatter(of[:, 0], of[:, 1], s=6, alpha=0.7, linewidths=0, label=name)
        axes.legend(frameon=False, fontsize=8, markerscale=2)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.3)


def _lines(samples: Any, labels: Any, names: Sequence[str]) -> npt.NDArray[np.uint8]:
    count = min(LINES, len(samples))
    rows = -(-count // PANELS)
    figure = _figure(2.6 * min(count, PANELS), 1.7 * rows + 0.3)
    low, high = _range(samples[:count])
    for i in range(count):
        axes = figure.add_subplot(rows, min(count, PANELS), i + 1)
        axes.plot(_series(samples[i]), linewidth=1)
        axes.set_ylim(low, high)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if labels is not None and 0 <= labels[i] < len(names):
            axes.set_title(in_matplotlib(names[labels[i]]), fontsize=8)
    return _drawn(figure)


def _one_state(axes: Any, state: Any, *, limits: tuple[float, float]) -> None:
    """All samples of one time in one panel."""
    if _is_points(state):
        axes.scatter(state[:, 0], state[:, 1], s=6, alpha=0.7, linewidths=0)
        axes.set_xlim(*limits)
        axes.set_aspect("equal")
    else:
        for sample in state[:4]:
            axes.plot(_series(sample), linewidth=0.8)
    axes.set_ylim(*limits)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _limits(*states: Any) -> tuple[float, float]:
    low, high = np.min([_range(s) for s in states]), np.max([_range(s) for s in states])
    return float(low), float(high)


def _range(samples: Any) -> tuple[float, float]:
    low, high = float(np.min(samples)), float(np.max(samples))
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _series(sample: Any) -> Any:
    """(L, ...) -> (L, lines)."""
    return sample.reshape(len(sample), -1)
