"""The sampling settings of a stored run, and the names that may take their place."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from diffjax.errors import UserError
from diffjax.experiment import schema
from diffjax.experiment.run import read_config
from diffjax.experiment.sampling import GRIDS, GUIDANCE, SAMPLERS, THRESHOLDS
from diffjax.experiment.spec import function_from_spec
from diffjax.schedules import Schedule

# Names of a config's `sample` section.
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


def sampler_of(text: str, schedule: Schedule) -> Callable[..., Any]:
    """The sampler that a text such as "ddim(eta=0.5)" names.

    Raises:
      UserError: an unknown name, wrong options, or a sampler of flow maps.
    """
    sampler = function_from_spec(text, SAMPLERS, key="sample.sampler")
    parameters = inspect.signature(sampler).parameters
    if next(iter(parameters), "") == "jump":
        raise UserError(f"{text} takes a flow map: choose another sampler")
    return partial(sampler, schedule=schedule) if "schedule" in parameters else sampler
