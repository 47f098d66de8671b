"""What is printed without a command: the first commands to run, and the version."""

import importlib.metadata
import platform
import sys
from pathlib import Path

from diffjax._version import __version__

_EXAMPLE = "experiments/digits.py"


def program() -> str:
    """How the program was started, as a command to run again."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        return "python -m diffjax"
    return "diffjax" if name in ("diffjax", "diffjax.exe") else "python -m diffjax.main"


def welcome() -> str:
    """The three commands of a first look: train, sample and report."""
    start = f"{program()} --config={_EXAMPLE}"
    commands = {
        start: "train on 8x8 digits, minutes on a CPU",
        f"{start} --mode=sample": "draw samples of that run",
        f"{start} --mode=report": "write its curves and samples to a page",
    }
    width = max(map(len, commands))
    lines = ["Diffusion models in JAX. Three commands to start with:", ""]
    lines += [f"  {command:<{width}}  # {meaning}" for command, meaning in commands.items()]
    lines += ["", "--help lists all modes and flags, and --help=train.steps explains a config key."]
    if not Path(_EXAMPLE).is_file():
        lines.append(f"There is no {_EXAMPLE} here: run them in a clone of diffjax's repository.")
    return "\n".join(lines)


def version() -> str:
    """The versions of diffjax, JAX and Python; JAX starts no device."""
    jax = importlib.metadata.version("jax")
    return f"diffjax {__version__} (JAX {jax}, Python {platform.python_version()})"
