"""The modules of what a config may train; see `schema.KINDS`. Each is imported on first use."""

import importlib
from typing import Any

from diffjax.data.info import DataInfo
from diffjax.experiment import schema


def resolve(config: Any) -> Any:
    """The resolved config with its data and training.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    return _module(config).resolve(config)


def resolve_model(config: Any, about: DataInfo) -> Any:
    """The model of a config without its training, which is not one of diffusion or a first stage.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    return _module(config).resolve_model(config, about)


def _module(config: Any) -> Any:
    return importlib.import_module(f"diffjax.experiment.{schema.section(config)}")
