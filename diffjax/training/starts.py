"""starts.jsonl: when, from which step, on what and with which versions a run was trained.

One line for each time that training was started or resumed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffjax._version import __version__
from diffjax.files import sync

STARTS = "starts.jsonl"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_CPU_NAMES = Path("/proc/cpuinfo")


def record(folder: Path, *, step: int, devices: Sequence[Any], parameters: int) -> None:
    """Appends a line to starts.jsonl.

    Args:
      folder: the workdir.
      step: that training starts after.
      devices: jax.Devices of all processes.
      parameters: number of the model's trained values.

    Raises:
      OSError: it can't be written.
    """
    row = {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "commit": commit(Path.cwd()),
        "parameters": parameters,
    }
    with open(folder / STARTS, "ab") as file:
        file.write((json.dumps(row) + "\n").encode())
        sync(file)


def versions() -> dict[str, str]:
    """The versions of Python, diffjax and the packages that it computes with."""
    found = {"python": platform.python_version(), "diffjax": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> str | None:
    """The commit of the git repository that a folder is in, with "-dirty" if files differ from it.

    None if there is no repository, no git, or no answer within seconds.
    """
    asked = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run([*asked, "--abbrev=12"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def processor() -> str:
    """The processor's name, or its architecture."""
    try:
        for line in _CPU_NAMES.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
