"""Links to the repository's files lead to the manual's own pages; what is generated stays out."""

import subprocess
from pathlib import Path

import links

ROOT = Path(__file__).resolve().parents[2]


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
