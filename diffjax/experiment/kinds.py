"""The modules of what a config may train; see `schema.KINDS`. Each is imported on first use."""

import importlib
from typing import Any

from diffjax.data.info import DataInfo
from diffjax.experiment import schema


def resolve(config: Any, *, trains: bool = True) -> Any:
    """The resolved config with its data and training.

    Args:
      config: the config.
      trains: False where a trained model is measured, which needs no teacher.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    options = {} if trains or schema.section(config) != "diffusion" else {"trains": False}
    return _module(config).resolve(config, **options)


def resolve_model(config: Any, about: DataInfo) -> Any:
    """The model of a config without its training, which is not one of diffusion or a first stage.

    Raises:
      UserError: any invalid or inconsistent value.
    """
    return _module(config).resolve_model(config, about)


def _module(config: Any) -> Any:
    return importlib.import_module(f"diffjax.experiment.{schema.section(config)}")
