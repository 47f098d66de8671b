"""Output that goes nowhere, or to a stream without some letters, ends no command."""

import errno
import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from diffjax.commands import process_setup, streams
from diffjax.errors import UserError


class Failing(io.StringIO):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_a_reader_that_is_gone_is_no_failure(monkeypatch, number):
    monkeypatch.setattr(sys, "stdout", Failing(number))
    with streams.tolerant_streams():
        print("lost")
        streams.check_written()


def test_a_full_disk_is_told_once_the_command_is_over(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing(errno.ENOSPC))
    with streams.tolerant_streams(), pytest.raises(UserError, match="No space left on device"):
        print("lost")
        streams.check_written()


def test_letters_that_the_encoding_lacks_are_escaped(monkeypatch):
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, encoding="ascii", newline=""))
    with streams.tolerant_streams():
        print("runs/wörk, caf\udce9")
    assert kept.getvalue() == b"runs/w\\xf6rk, caf\\udce9\n"


def test_closed_streams_are_replaced_and_their_numbers_are_taken():
    """Otherwise the next file to be opened would be number 2, where C libraries write to."""
    code = (
        "import os\n"
        "from diffjax.commands.streams import tolerant_streams\n"
        "import sys\n"
        "with tolerant_streams():\n"
        "    print('nowhere', file=sys.stderr)\n"
        "    opened = os.open(os.devnull, os.O_RDONLY)\n"
        "sys.exit(opened < 3)\n"
    )
    done = subprocess.run(["bash", "-c", f'"$0" -c "{code}" <&- >&- 2>&-', sys.executable])
    assert done.returncode == 0


def test_an_unread_pipe_leaves_the_exit_code_alone():
    code = (
        "from diffjax.commands.streams import tolerant_streams\n"
        "with tolerant_streams():\n"
        "    for _ in range(100000): print('a line')\n"
    )
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "{code}" | head -1; exit ${{PIPESTATUS[0]}}', sys.executable],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "a line\n", "")


@pytest.mark.parametrize(("wanted", "extra"), [("cuda", "cuda13"), ("rocm,cpu", "rocm")])
def test_a_platform_that_jax_has_not_is_told_in_one_line(monkeypatch, wanted, extra):
    def fail(platform=None):
        if platform != "cpu":
            raise AssertionError

    config = SimpleNamespace(values={"jax_platforms": wanted})
    monkeypatch.setattr(process_setup, "jax", SimpleNamespace(config=config, devices=fail))
    with pytest.raises(UserError, match=rf"JAX_PLATFORMS={wanted}: .*jax\[{extra}\]"):
        process_setup.check_platforms()


def test_a_missing_platform_is_told_also_where_jax_falls_back_to_another(monkeypatch):
    def devices(platform="cpu"):
        if platform != "cpu":
            raise RuntimeError(f"Unknown backend {platform}")

    config = SimpleNamespace(values={"jax_platforms": "cuda,cpu"})
    monkeypatch.setattr(process_setup, "jax", SimpleNamespace(config=config, devices=devices))
    with pytest.raises(UserError, match=r"can't use it .Unknown backend cuda"):
        process_setup.check_platforms()
    config.values["jax_platforms"] = "cpu"
    process_setup.check_platforms()
