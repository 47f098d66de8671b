"""Writes the pages that are made of the code: the API, every config key, every command and flag.

Next to them are the repository's own pages (`links.PAGES`) and its notebooks.

    python docs/generate.py [FOLDER]

`make docs` does the same when it begins. Git ignores them.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import api_pages  # noqa: E402
import commands_page  # noqa: E402
import config_page  # noqa: E402
import house  # noqa: E402
import links  # noqa: E402


def pages() -> dict[str, str]:
    """Path below docs/ -> text."""
    return {
        **links.copies(),
        "house.svg": house.svg(),
        **{f"reference/api/{name}": text for name, text in api_pages.pages().items()},
        "reference/config.md": config_page.page(),
        "reference/commands.md": commands_page.page(),
    }


def write(folder: Path = HERE) -> None:
    """Writes what differs, so that Sphinx reads again only what has changed."""
    for name, text in pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
