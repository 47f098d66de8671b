"""loss.png, from metrics.jsonl."""

import gc
from pathlib import Path

from diffjax import figures
from diffjax.training.logs import read_rows


def write(folder: Path) -> None:
    """Writes folder/loss.png."""
    figures.plot_loss(folder / "loss.png", read_rows(folder / "metrics.jsonl"))
    # A figure is megabytes in reference cycles. Python collects the oldest generation only when it
    # has grown by a quarter, so old figures would accumulate in a long run.
    gc.collect()
