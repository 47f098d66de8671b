"""Weights in other Python packages, found without importing them."""

import importlib.util
from pathlib import Path

from diffjax.errors import UserError


def installed_file(package: str, file: str, *, install: str) -> Path:
    """The path of a package's file.

    Args:
      package: its import name, without dots.
      file: the path within it, with forward slashes.
      install: the pip command that installs it, for the message.

    Raises:
      UserError: the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (path := Path(folder) / file).is_file():
            return path
    state = f"{package} without {file}" if folders else f"no package {package}"
    raise UserError(f"found {state}; expected its weights; run {install}")
