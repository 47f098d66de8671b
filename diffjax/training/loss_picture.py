"""loss.png, from metrics.jsonl."""

from pathlib import Path

from diffjax import figures
from diffjax.training.logs import read_rows


def write(folder: Path) -> None:
    """Writes folder/loss.png."""
    figures.plot_loss(folder / "loss.png", read_rows(folder / "metrics.jsonl"))
