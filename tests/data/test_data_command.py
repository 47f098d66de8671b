"""`python -m diffjax.data`, and what importing the room costs."""

import os
import subprocess
import sys

import pytest

from diffjax.data.__main__ import main


def test_it_says_what_is_ready(capsys):
    assert main(["digits"]) == 0
    assert "1437 images of 8x8x1" in capsys.readouterr().out


def test_errors_are_one_line_and_code_2(tmp_path, capsys):
    assert main(["fashion_mnist", "--dir", str(tmp_path / "typo")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_a_set_that_is_an_example_now_says_what_makes_it(capsys):
    assert main(["emoji"]) == 2
    assert "python examples/emoji/fetch.py" in capsys.readouterr().err


def test_as_a_module(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "diffjax.data", "nonsense"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown data set 'nonsense'")


@pytest.mark.parametrize("library", ["tensorflow_datasets", "tensorflow", "grain", "sklearn"])
def test_importing_the_room_is_cheap(library):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = f"import sys, diffjax.data; sys.exit({library!r} in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0
    )
