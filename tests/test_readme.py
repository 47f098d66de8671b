"""README's example runs as it stands, and its commands name files and flags that exist."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from diffjax import flags
from diffjax.checkpoints import workdir

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(
    r"^python -m diffjax\.main (.*)$", README.replace("\\\n", " "), flags=re.MULTILINE
)


def test_the_example_runs():
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 5 and result.failed == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert flags.parse(shlex.split(command)).mode in flags.MODES


def test_there_are_commands():
    assert len(COMMANDS) >= 5


def test_links_lead_to_files():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_keys_that_may_change_are_listed():
    listed = README.split("These keys may change when a run goes on:")[1].split("With any other")[0]
    names = {name.removesuffix("*") for name in re.findall(r"`([\w.*]+)`", listed)}
    assert names == set(workdir.MAY_CHANGE)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("name", ["README.md", "RESULTS.md"])
def test_nothing_is_left_to_be_filled_in(name):
    assert not re.findall(r"^[A-Z_]{4,}$", (ROOT / name).read_text(), flags=re.MULTILINE)
