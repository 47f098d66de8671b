"""The Fréchet distance against a setting of sampling, such as the scale of guidance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.files import atomic_write

_KEYS = {"frechet_distance", "num_samples", "floor_equal_count", "features"}


def plot_scales(
    path: str | os.PathLike[str],
    reports: Sequence[Mapping[str, Any]],
    *,
    over: str = "scale",
    label: str = "guidance scale w (1: none)",
) -> None:
    """Writes a PNG of the Fréchet distance at each value of a setting, with its floor.

    Args:
      path: the file to create or replace.
      reports: results of `evaluation.report.evaluate`, each with its "scale".
      over: the entry of the reports that has the setting's value.
      label: of the axis.

    Raises:
      UserError: a path that cannot be written, or what is no list of reports.
    """
    path = arguments.path("path", path)
    over, label = arguments.text("over", over), arguments.text("label", label)
    keys = _KEYS | {over}
    if (
        not isinstance(reports, Sequence)
        or not reports
        or not all(isinstance(report, Mapping) and report.keys() >= keys for report in reports)
    ):
        raise UserError(
            f"reports is {arguments.shown(reports)}: expected one or more results of "
            f'evaluation.report.evaluate, each with its "{over}"'
        )
    # Not pyplot, which keeps figures alive and selects a backend.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reports = sorted(reports, key=lambda report: report[over])
    with matplotlib.rc_context({"font.size": 11}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        scales = [report[over] for report in reports]
        distances = [report["frechet_distance"] for report in reports]
        axes.plot(scales, distances, "o-", label=f"{reports[0]['num_samples']} samples")
        for scale, distance in zip(scales, distances, strict=True):
            axes.annotate(
                f"{distance:.3g}", (scale, distance), xytext=(0, 7), textcoords="offset points",
                ha="center", fontsize=9,
            )  # fmt: skip
        floor = reports[0]["floor_equal_count"]
        if floor is not None:
            count = reports[0]["floor_equal_count_images"]
            axes.axhline(floor, color="grey", linestyle="--", label=f"{count} test images")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel(label)
        axes.set_ylabel(f"Fréchet distance ({reports[0]['features']})")
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False)
        atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=120))
