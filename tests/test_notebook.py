"""Each notebook runs from top to bottom, as a user would run it, with fewer training steps."""

import importlib.util
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the test extra brings nbclient")

ROOT = Path(__file__).resolve().parents[1]
ENTRY = "quickstart.ipynb"  # a quick test: test_stored_notebooks.py
NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").glob("*.ipynb") if path.name != ENTRY)
# What is stored was trained for longer; that each cell runs is seen with these.
FEWER = {
    "1_two_dimensions": {'"steps": 4000': '"steps": 400'},
    "2_fashion_mnist": {'"steps": 1000': '"steps": 100', '"samples": 320': '"samples": 80'},
    "3_samplers_and_guidance": {'"train_steps": 600': '"train_steps": 120'},
    "4_editing_and_inverse_problems": {'"steps": 900': '"steps": 100'},
    "5_latent_diffusion_and_text": {
        '"stage_steps": 500': '"stage_steps": 60',
        '"steps": 700': '"steps": 60',
    },
    "6_bits_per_dimension": {'"steps": 600': '"steps": 100'},
    "7_your_own_network": {
        '"steps": 1600': '"steps": 200',
        '"unet_steps": 400': '"unet_steps": 80',
    },
}


def tool():
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks/execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_fewer_steps(notebook, fewer):
    """Replaces each setting once, in the cell that names it."""
    for old, new in fewer.items():
        cells = [cell for cell in notebook.cells if old in cell.source]
        assert len(cells) == 1, old
        cells[0].source = cells[0].source.replace(old, new)


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
    with_fewer_steps(notebook, FEWER[path.stem])
    if path.name.startswith("2_") and not has_fashion_mnist():
        for cell in notebook.cells:
            cell.source = cell.source.replace('DATA = "fashion_mnist"', 'DATA = "digits"')
    # In a copy, so that runs and outputs don't land in the repository.
    execute.execute(notebook, execute.copy_repository(tmp_path))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kinds = [kind for cell in code for output in cell.outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") >= 3
    assert not [output for cell in code for output in cell.outputs if output.get("ename")]
