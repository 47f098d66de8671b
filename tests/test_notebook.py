"""Each notebook runs from top to bottom, as a user would run it."""

import importlib.util
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the test extra brings nbclient")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def tool():
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks/execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def has_fashion_mnist():
    from diffjax import data
    from diffjax.errors import UserError

    try:
        return len(data.load("fashion_mnist", split="test")) > 0
    except UserError:
        return False


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.name for path in NOTEBOOKS])
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    pytest.importorskip("nbclient", reason="the test extra brings it")
    # Of what they compute, compiling is not most of the time: as a user's, it is optimised.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    execute = tool()
    notebook = nbformat.read(path, as_version=4)
    if path.name.startswith("2_") and not has_fashion_mnist():
        for cell in notebook.cells:
            cell.source = cell.source.replace('DATA = "fashion_mnist"', 'DATA = "digits"')
    # In a copy, so that runs and outputs don't land in the repository.
    execute.execute(notebook, execute.copy_repository(tmp_path))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kinds = [kind for cell in code for output in cell.outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") >= 3
    assert not [output for cell in code for output in cell.outputs if output.get("ename")]
