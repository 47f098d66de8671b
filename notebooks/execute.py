"""Executes notebooks from top to bottom and stores them with their outputs.

    python notebooks/execute.py                          all of them
    python notebooks/execute.py 1_two_dimensions.ipynb   some

Each runs in a copy of the repository's files, so that runs that it trains are not left behind.
Stored are cells and outputs alone, without times of execution or the kernel's version; a path of
this machine in an output is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
METADATA = {
    "accelerator": "GPU",
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
COPIED = ("diffjax", "experiments", "examples")
MACHINE_PATH = re.compile(r"/(?:home|root|tmp|Users|usr|opt|work|var|private)/[\w.-]+")
# What XLA writes when a machine is busy: it says nothing about the notebook.
SLOW_COMPILE = re.compile(
    r"(?m)^(?:E\d{4} .*slow_operation_alarm.*|\*{8,}|.*Very slow compile\?.*)\n+"
)
SOURCES = "diffjax_sources"  # the checksum of the cells that the outputs belong to


def checksum(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of all code cells, in order: outputs belong to these."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()


def copy_repository(to: Path) -> Path:
    """Copies what notebooks read; returns the folder that they run in."""
    for name in COPIED:
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    (to / "notebooks").mkdir()
    return to / "notebooks"


def execute(notebook: nbformat.NotebookNode, folder: Path, *, timeout: int = 3600) -> None:
    """Runs all cells in a new kernel, in place.

    Args:
      notebook: its cells get the outputs.
      folder: the kernel's working folder.
      timeout: seconds for one cell.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
    client = nbclient.NotebookClient(
        notebook, timeout=timeout, kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute()


def tidy(notebook: nbformat.NotebookNode, copy: str) -> None:
    """Joins streams and drops what differs from run to run and has no meaning for a reader.

    Args:
      notebook: executed; changed in place.
      copy: the folder that the repository was copied to; paths in it become relative ones.
    """
    notebook.metadata = nbformat.from_dict({**METADATA, SOURCES: checksum(notebook)})
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type != "code":
            continue
        kept: list[nbformat.NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream":
                text = output.text.replace(f"{copy}/notebooks/../", "").replace(f"{copy}/", "")
                output.text = _after_returns(SLOW_COMPILE.sub("", text))
                if not output.text.strip():
                    continue
                if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                    kept[-1].text = _after_returns(kept[-1].text + output.text)
                    continue
            else:
                output.pop("transient", None)
                output.get("data", {}).pop("image/jpeg", None)
            kept.append(output)
        cell.outputs = kept


def _after_returns(text: str) -> str:
    """What a terminal shows of a text: a carriage return overwrites its line."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with stored outputs; [] if they can be published."""
    found = []
    if notebook.metadata.get(SOURCES) != checksum(notebook):
        found.append("a cell was changed after it was executed: run python notebooks/execute.py")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"execution counts are {counts}, not 1 to {len(code)}")
    for number, cell in enumerate(code, start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell {number} failed: {output.ename}: {output.evalue}")
            text = str(output.get("text", "")) + "".join(
                str(value)
                for kind, value in output.get("data", {}).items()
                if not kind.startswith("image/")
            )
            found += [f"cell {number} shows {path[0]}" for path in MACHINE_PATH.finditer(text)]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Executes and stores notebooks; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", help="names of files; all by default")
    names = parser.parse_args(arguments).notebooks
    paths = [FOLDER / Path(name).name for name in names] or sorted(FOLDER.glob("*.ipynb"))
    if missing := [path.name for path in paths if not path.is_file()]:
        print(f"error: there is no notebook {', '.join(missing)} in {FOLDER}", file=sys.stderr)
        return 2
    failed = False
    for path in paths:
        began = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as copy:
            execute(notebook, copy_repository(Path(copy)))
        tidy(notebook, copy)
        wrong = problems(notebook)
        failed |= bool(wrong)
        aside = path.with_suffix(".part")
        nbformat.write(notebook, aside)
        os.replace(aside, path)
        size = path.stat().st_size / 1000
        print(f"{path.name}: {time.monotonic() - began:.0f} s, {size:.0f} kB", flush=True)
        for line in wrong:
            print(f"  {line}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
