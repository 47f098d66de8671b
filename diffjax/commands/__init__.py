"""One file a `--mode`, each with `run(request) -> exit code`."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# mode -> what it does, for --help. The module of a mode has its name.
MODES = {
    "train": "train, going on where the last run stopped",
    "sample": "draw samples",
    "edit": "edit images from files",
    "evaluate": "measure samples, likelihoods or reconstructions",
    "ema": "rebuild an average of another length from stored ones",
    "export": "write the model alone to --out: safetensors and config.json",
    "plan": "what a training would take of config.parallel.devices devices; nothing is trained",
    "config": "print the config with its defaults; what differs from them is marked",
}
# The work of one process.
ONE_PROCESS = ("edit", "ema", "export", "plan", "config")
# Modes of an autoencoder's config.
OF_AUTOENCODERS = ("train", "evaluate", "export", "plan", "config")


class Request(NamedTuple):
    """What a command is asked for.

    Attributes:
      config: complete and checked.
      workdir: the run's folder.
      profile: whether a training writes a trace of a few steps.
      out: where `export` writes.
    """

    config: Any
    workdir: Path
    profile: bool = False
    out: Path | None = None


def command(mode: str) -> Callable[[Request], int]:
    """The function of a mode; its module is imported now."""
    run: Callable[[Request], int] = importlib.import_module(f"diffjax.commands.{mode}").run
    return run
