"""Files of the repository that are pages of the manual, and links to all others.

A page links to a file of the repository as on any host of it: by its relative path. In the manual
such a link leads to the file's page if it has one, to the documentation of a module of diffjax, and
to a copy of any other file.
"""

import os
import re
from pathlib import Path

import api

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# File of the repository -> the page that shows it.
PAGES = {
    "RESULTS.md": "project/results.md",
    "RELIABILITY.md": "project/reliability.md",
    "benchmarks/RESULTS.md": "project/pytorch.md",
    "benchmarks/samplers.md": "project/samplers.md",
    "benchmarks/gpu.md": "project/gpu.md",
    "examples/doors/README.md": "project/doors.md",
    "examples/emoji/README.md": "project/emoji.md",
    "examples/avatars/README.md": "project/avatars.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "README.md": "index.md",
}
_FENCE = re.compile(r"(^ *(`{3,}|~{3,}).*?^ *\2 *$)", flags=re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")


def copies() -> dict[str, str]:
    """Page -> text, of every file of the repository that is shown as it is."""
    found = {page: ROOT / file for file, page in PAGES.items() if page.startswith("project/")}
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    found |= {f"notebooks/{path.name}": path for path in notebooks}
    return {page: path.read_text(encoding="utf-8") for page, path in found.items()}


def rewritten(text: str, page: str) -> str:
    """A page's text with its links to the repository's files as links of the manual.

    Args:
      text: the page's Markdown, or a notebook.
      page: its path below docs/, such as "project/results.md".
    """
    parts = _FENCE.split(text)  # text, fence, the fence's mark, text, ...
    here = os.path.dirname(page)
    home = _home(page)

    def link(match: re.Match[str]) -> str:
        picture, shown, target, anchor = match.groups(default="")
        path = Path(os.path.normpath(home / target))
        if re.match(r"\w+:", target) or not path.exists() or ROOT not in path.parents:
            return match[0]
        file = path.relative_to(ROOT).as_posix()
        relative = os.path.relpath(path, DOCS / here)
        if picture:
            return f"![{shown}]({relative})"
        if path.is_dir() and f"{file}/README.md" in PAGES:
            file = f"{file}/README.md"
        if file in PAGES:
            return f"[{shown}]({os.path.relpath(PAGES[file], here or '.')}{anchor})"
        if path.suffix == ".ipynb" and path.parent.name == "notebooks":
            return f"[{shown}]({os.path.relpath(f'notebooks/{path.name}', here or '.')}{anchor})"
        if path.suffix == ".md":
            return f"[{shown}]({relative}{anchor})"
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        plain = shown.replace("`", "")
        if module in api.modules():
            return f"{{py:mod}}`{plain} <{module}>`"
        return shown if path.is_dir() else f"{{download}}`{plain} <{relative}>`"

    return "".join(
        part if i % 3 == 1 else "" if i % 3 == 2 else _LINK.sub(link, part)
        for i, part in enumerate(parts)
    )


def _home(page: str) -> Path:
    """The folder that a page's links start from: that of the file it shows."""
    for file, of in PAGES.items():
        if of == page and page != "index.md":
            return (ROOT / file).parent
    if page.startswith("notebooks/") and not page.endswith("index.md"):
        return ROOT / "notebooks"
    return (DOCS / page).parent
