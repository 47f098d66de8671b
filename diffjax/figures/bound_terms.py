"""The terms of a likelihood bound over noise levels or steps, and noise schedules."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.files import atomic_write

BINS = 40


def plot_bound(
    path: str | os.PathLike[str],
    each: Mapping[str, np.ndarray],
    *,
    title: str,
    schedules: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> None:
    """Writes a PNG of a bound's terms and, in a second panel, of noise schedules.

    Args:
      path: the file to create or replace.
      each: terms per image: "log_snr" and "bits_per_log_snr" (n, K) for the continuous-time bound,
        or "steps" (n, N) for a discrete chain, the noisiest step first.
      title: of the first panel.
      schedules: name -> (t, log-SNR); None for no second panel.

    Raises:
      UserError: a path that cannot be written, or terms that are none of these.
    """
    path, title, each = arguments.path("path", path), arguments.text("title", title), _terms(each)
    # Not pyplot, which keeps figures alive and selects a backend.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if schedules else 1
    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(6 * columns, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(1, columns, 1)
        _draw_terms(axes, each)
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.3)
        if schedules:
            axes = figure.add_subplot(1, columns, 2)
            for name, (t, log_snr) in schedules.items():
                axes.plot(t, -np.asarray(log_snr), label=name)
            axes.set_xlabel("t")
            axes.set_ylabel("gamma = -log SNR")
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
        atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=120))


def _terms(each: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    found: Mapping[str, Any] = each if isinstance(each, Mapping) else {}
    names = ("steps",) if "steps" in found else ("log_snr", "bits_per_log_snr")
    if not all(
        name in found and np.ndim(found[name]) == 2 and np.size(found[name]) for name in names
    ):
        raise UserError(
            f'each is {arguments.shown(each)}: expected arrays "log_snr" and "bits_per_log_snr" '
            '(n, K), or "steps" (n, N)'
        )
    return {
        name: arguments.array(f"each: {name}", found[name], expected="numbers (n, K)")
        for name in names
    }


def _draw_terms(axes: Any, each: Mapping[str, np.ndarray]) -> None:
    if "steps" in each:
        terms = each["steps"].mean(0)
        axes.semilogy(np.arange(len(terms) + 1, 1, -1), terms)
        axes.set_xlabel("step t (1 is the reconstruction)")
        axes.set_ylabel("bits/dim of the step")
        return
    log_snr, bits = each["log_snr"].ravel(), each["bits_per_log_snr"].ravel()
    edges = np.linspace(log_snr.min(), log_snr.max(), BINS + 1)
    place = np.clip(np.digitize(log_snr, edges) - 1, 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    means = np.bincount(place, bits, BINS) / np.maximum(counts, 1)
    shown = counts > 0
    middle = (edges[1:] + edges[:-1]) / 2
    axes.fill_between(middle[shown], means[shown], alpha=0.3, step="mid")
    axes.step(middle[shown], means[shown], where="mid")
    axes.set_ylim(0)
    axes.set_xlabel("log-SNR (clean data on the right)")
    axes.set_ylabel("bits/dim per unit of log-SNR")
