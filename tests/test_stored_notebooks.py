"""What is stored of the notebooks belongs to their cells, and the entry runs with few steps."""

import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the test extra brings nbclient")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.name for path in NOTEBOOKS]
MOST_BYTES = 700_000


def tool():
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks/execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = tool()


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    outputs = [output for cell in code_of(notebook) for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_stored_outputs_belong_to_the_cells(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert not execute.problems(notebook)
    assert pictures(notebook)
    assert path.stat().st_size < MOST_BYTES


def test_the_seven_are_there():
    numbered = [name[0] for name in NAMES if name[0].isdigit()]
    assert numbered == list("1234567")
    assert "quickstart.ipynb" in NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_first_cell_installs_and_the_last_teaches(path):
    notebook = read(path)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert code_of(notebook)[0].source == code_of(read(NOTEBOOKS[0]))[0].source
    last = notebook.cells[-1]
    assert last.cell_type == "markdown"
    if path.name[0].isdigit():
        assert "## Exercises" in last.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_relative_files_that_are_named_exist(path):
    text = "\n".join(cell.source for cell in read(path).cells)
    named = re.findall(r"(?:experiments|examples|benchmarks)/[\w/]+(?:\.py|\.md)?", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def executed_once():
    cell = nbformat.v4.new_code_cell("1 + 1", execution_count=1)
    cell.outputs = [
        nbformat.v4.new_output("execute_result", data={"text/plain": "2"}, execution_count=1)
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Sums"), cell])
    execute.tidy(notebook, "/nowhere")
    return notebook


def test_a_stored_notebook_has_no_problems():
    assert not execute.problems(executed_once())


def test_text_may_be_edited_and_code_may_not():
    notebook = executed_once()
    notebook.cells[0].source = "# Better sums"
    assert not execute.problems(notebook)
    notebook.cells[1].source = "1 + 2"
    assert ["after it was executed" in line for line in execute.problems(notebook)] == [True]


@pytest.mark.parametrize(
    "output",
    [
        nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=[]),
        nbformat.v4.new_output("stream", name="stdout", text="wrote /home/someone/runs/x.png"),
        nbformat.v4.new_output("display_data", data={"text/plain": "PosixPath('/tmp/x')"}),
    ],
    ids=["error", "stream", "path"],
)
def test_bad_outputs_are_found(output):
    notebook = executed_once()
    notebook.cells[1].outputs.append(output)
    assert len(execute.problems(notebook)) == 1


def test_counts_out_of_order_are_found():
    notebook = executed_once()
    notebook.cells[1].execution_count = 3
    assert execute.problems(notebook) == ["execution counts are [3], not 1 to 1"]


def test_paths_of_the_copy_become_relative():
    notebook = executed_once()
    notebook.cells[1].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="at 1\rat 2\n"),
        nbformat.v4.new_output("stream", name="stdout", text="in /copy/notebooks/../runs/a\n"),
    ]
    execute.tidy(notebook, "/copy")
    (output,) = notebook.cells[1].outputs
    assert output.text == "at 2\nin runs/a\n"


def test_the_entry_runs_with_few_steps(tmp_path):
    # Compiling is most of its time, and little is optimised: tests/conftest.py sets XLA_FLAGS.
    pytest.importorskip("nbclient", reason="the test extra brings it")
    notebook = read(ROOT / "notebooks/quickstart.ipynb")
    stored = len(pictures(notebook))
    few = 0
    for cell in code_of(notebook):
        cell.source, count = re.subn(r"\"train_steps\": 600", '"train_steps": 20', cell.source)
        few += count
    assert few == 1
    execute.execute(notebook, execute.copy_repository(tmp_path))
    assert len(pictures(notebook)) == stored
    assert (tmp_path / "runs/notebook/samples.png").exists()
