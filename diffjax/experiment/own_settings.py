"""The sampling settings of a stored run, and the names that may take their place."""

from pathlib import Path
from typing import Any

from diffjax.experiment import schema
from diffjax.experiment.run import read_config
from diffjax.experiment.sampling import GRIDS, GUIDANCE, SAMPLERS, THRESHOLDS

SHOWN = ("sampler", "grid", "steps", "guidance", "threshold")


def names() -> dict[str, tuple[str, ...]]:
    """Names of samplers, grids, kinds of guidance and thresholds, in the order of their tables."""
    tables = {"sampler": SAMPLERS, "grid": GRIDS, "guidance": GUIDANCE, "threshold": THRESHOLDS}
    return {key: tuple(table) for key, table in tables.items()}


def kind_of(folder: Path) -> str | None:
    """The kind of a run, such as "diffusion"; None for a folder without one.

    Raises:
      UserError: its config can't be read.
    """
    config = read_config(folder)
    return None if config is None else schema.kind(config)


def own_settings(folder: Path) -> dict[str, Any]:
    """The run's `sample` section as far as `SHOWN`; empty for what is no run.

    Raises:
      UserError: its config can't be read.
    """
    config = read_config(folder)
    if config is None or not schema.is_diffusion(config):
        return {}
    return {key: config.sample[key] for key in SHOWN}
