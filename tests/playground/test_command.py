"""`python -m diffjax.playground` as a user meets it."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from diffjax.playground.__main__ import main


def one_error(capsys, *arguments):
    assert main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_bad_arguments_are_one_line(capsys, tmp_path, tiny_run):
    assert "no run was given" in one_error(capsys)
    assert "there is no run" in one_error(capsys, f"--workdir={tmp_path}")
    assert "there is no run" in one_error(capsys, f"--workdir={tmp_path / 'nothing'}")
    own = f"--workdir={tiny_run}"
    assert "given twice" in one_error(capsys, own, own)
    assert "--port" in one_error(capsys, own, "--port=many")
    assert "--port=70000" in one_error(capsys, own, "--port=70000")
    assert "unrecognized" in one_error(capsys, own, "--prot=1")
    assert "expected a view of" in one_error(capsys, own, "--view=fly", "--save=x.png")
    assert ".png" in one_error(capsys, own, "--view=draw", "--save=x.gif")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port={port}: Address already in use" in one_error(capsys, own, f"--port={port}")


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "--workdir" in capsys.readouterr().out


# The background jobs of a shell ignore the signal, and their children inherit that.
HEARS_CTRL_C = """
import signal, runpy
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("diffjax.playground", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_ends_it_cleanly(tiny_run):
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, f"--workdir={tiny_run}", "--port=0", "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    address = process.stdout.readline()
    assert address.startswith("playground at http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.split() == ["stopped"]
