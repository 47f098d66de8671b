"""The manual's commands name configs, keys and flags that exist, and its links lead somewhere."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import links
import pytest

from diffjax import flags

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in (*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md")
    if path.relative_to(ROOT / "docs" if ROOT / "docs" in path.parents else ROOT).parts[0]
    not in ("project", "reference")
)
COMMANDS = sorted(
    {
        (path.name, " ".join(command.split()))
        for path in PAGES
        for command in re.findall(
            r"^ *(?:\$ |srun )?python -m diffjax\.main (.*)$",
            path.read_text(encoding="utf-8").replace("\\\n", " "),
            flags=re.MULTILINE,
        )
        if "--config=FILE" not in command
    }
)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_parse(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command, comments=True)
    if flags.help_wanted(arguments):
        assert flags.explain(flags.help_wanted(arguments))
    elif flags.help_wanted(arguments) is None:
        assert flags.parse(arguments).mode in flags.MODES


def test_there_are_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    assert not re.findall(r"@[A-Z]+@|TODO", path.read_text("utf-8"))
    text = re.sub(r"^ *(```+).*?^ *\1", "", path.read_text("utf-8"), flags=re.M | re.S)
    made = {ROOT / "docs" / page for page in [*links.PAGES.values(), *links.copies()]}
    made |= {ROOT / "docs/reference/config.md", ROOT / "docs/reference/commands.md"}
    for link in re.findall(r"\]\(([^)#:\s]+)", text):
        target = Path(os.path.normpath(path.parent / link))
        assert target.exists() or target in made, f"{path.name}: {link}"


def test_links_to_the_repository_lead_to_the_manual():
    def at(text, page="how_to/page.md"):
        return links.rewritten(text, page)

    assert at("[a](../../RESULTS.md#plans)") == "[a](../project/results.md#plans)"
    assert at("[`a`](../../diffjax/process.py)") == "{py:mod}`a <diffjax.process>`"
    assert at("[a](../../experiments/digits.py)") == ("{download}`a <../../experiments/digits.py>`")
    assert at("![a](../samples.png)") == "![a](../samples.png)"
    assert at("[a](docs/tour.md)", "project/changelog.md") == "[a](../tour.md)"
    assert (
        at("[a](../../no_such.py) [b](https://x.y/z)") == "[a](../../no_such.py) [b](https://x.y/z)"
    )
    code = "```\n[a](../../RESULTS.md)\n```"
    assert at(code) == code


def test_generated_pages_are_not_committed():
    tracked = subprocess.run(
        ["git", "ls-files", "docs/reference", "docs/project", "docs/notebooks"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    assert set(tracked) <= {f"docs/{d}/index.md" for d in ("reference", "project", "notebooks")}
