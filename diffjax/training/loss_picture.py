"""loss.png, from metrics.jsonl."""

import gc
from pathlib import Path

from diffjax import figures
from diffjax.training.logs import read_rows


def write(folder: Path) -> None:
    """Writes folder/loss.png."""
    figures.plot_loss(folder / "loss.png", read_rows(folder / "metrics.jsonl"))
    # A figure is megabytes in reference cycles, and Python looks through all that is old only when
    # it has grown by a quarter: in a long run the figures before would stay.
    gc.collect()
