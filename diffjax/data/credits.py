"""Whose a data set is and under which licence, as far as that is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

# Name of a set -> its authors and licence.
KNOWN = {
    "fashion_mnist": "Fashion-MNIST, H. Xiao, K. Rasul and R. Vollgraf 2017, arXiv:1708.07747; "
    "MIT licence",
    "digits": "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak 1998, UCI "
    "Machine Learning Repository, https://doi.org/10.24432/C50P49; CC BY 4.0",
}
_FILE = re.compile(r"(credits|licen[cs]e|copying|attribution)(\.(txt|md|rst))?", re.IGNORECASE)
MOST_LETTERS = 2000


def of(name: str, directory: str = "") -> str:
    """What is known of a set's authors and licence; "" if nothing is.

    Args:
      name: as for `diffjax.data.load`.
      directory: config.data.dir, or where a folder's images are now; "" for the default.

    Returns:
      For a set that comes with diffjax, its authors and licence; for one of TFDS, what its
      dataset_info.json has; for a folder, its CREDITS, LICENSE, COPYING and ATTRIBUTION files.
    """
    if name in KNOWN:
        return KNOWN[name]
    kind, _, rest = name.partition(":")
    if kind == "tfds":
        return _of_tfds(rest, directory)
    folder = directory or (rest if kind == "folder" else "")
    return _of_folder(Path(folder)) if folder else ""


def _of_tfds(name: str, directory: str) -> str:
    from diffjax.data import tfds_sets
    from diffjax.errors import UserError

    if name in KNOWN:
        return KNOWN[name]
    try:
        root = Path(directory) if directory else tfds_sets.default_dir()
        prepared = tfds_sets.find_prepared(name, root)
        if prepared is None:
            return ""
        stored = json.loads((prepared / "dataset_info.json").read_text(encoding="utf-8"))
        licence = (stored.get("redistributionInfo") or {}).get("license", "")
        return _short("\n".join(filter(None, (licence, stored.get("citation", "")))))
    except (UserError, OSError, ValueError, AttributeError):
        return ""


def _of_folder(folder: Path) -> str:
    try:
        files = sorted(path for path in folder.iterdir() if _FILE.fullmatch(path.name))
        return _short("\n".join(path.read_text("utf-8", "replace") for path in files))
    except OSError:
        return ""


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + " ..."
