"""The notebook runs from top to bottom, as a user would run it."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_quickstart_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="the test extra brings nbclient")
    import nbformat

    # Of its 600 steps, compiling is not most of the time: as a user's are, they are optimised.
    monkeypatch.delenv("XLA_FLAGS")
    # In a copy, so that the workdir and the outputs don't land in the repository.
    for name in ("diffjax", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(ROOT / "notebooks/quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    ).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 6
    assert (tmp_path / "runs/notebook/samples.png").exists()
