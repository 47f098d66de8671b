"""Links of a page to files of the repository outside of the manual: to copies for download.

Pages are read on a code host, too, where a link is a path from the page's own folder.
"""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_LINK = re.compile(r"\]\((?P<path>(?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the handler below."""
    app.connect("source-read", _outside)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _outside(app: Sphinx, docname: str, source: list[str]) -> None:
    folder = Path(app.env.doc2path(docname)).parent

    def replaced(match: re.Match[str]) -> Any:
        target = (folder / match["path"]).resolve()
        if target.is_relative_to(Path(app.srcdir).resolve()) or not target.is_file():
            return match[0]
        return f"](path:{match['path']})"

    source[0] = _LINK.sub(replaced, source[0])
