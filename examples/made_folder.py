"""A folder of data that is made whole or not at all, and that remembers what it was made from."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffjax.errors import UserError

BUILD_FILE = "build.json"


def summary_of(out: Path, identity: dict[str, Any], *, what: str) -> str | None:
    """Returns the summary of the same build in `out`, None where `out` is free.

    Args:
      out: the folder.
      identity: what the set is made from, as JSON gives it back.
      what: another set of this kind, for the message.

    Raises:
      UserError: `out` holds something else.
    """
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return None
        found = json.loads((out / BUILD_FILE).read_text(encoding="utf-8"))
        summary = found.pop("summary")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        found = summary = None
    if found == identity and isinstance(summary, str):
        return summary
    holds = what if found else "something else"
    raise UserError(f"--out={out} holds {holds}; choose a new folder or delete this one")


@contextlib.contextmanager
def made_whole(out: Path, identity: dict[str, Any], *, summary: str) -> Iterator[Path]:
    """A folder to write into, which gets the name `out` at the end, once it is on the disk.

    Raises:
      UserError: it cannot be written.
    """
    aside = out.with_name(f".{out.name}.{secrets.token_hex(6)}.tmp")
    try:
        aside.mkdir(parents=True)
        yield aside
        text = json.dumps({**identity, "summary": summary}, indent=2) + "\n"
        (aside / BUILD_FILE).write_text(text, encoding="utf-8")
        _sync(aside)
        os.rename(aside, out)
    except OSError as error:
        raise UserError(
            f"cannot write --out={out} ({error.strerror or error}); choose a folder that can be "
            "written to, with room for it"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Forces all files in a folder to the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(parent, name), "rb") as file, contextlib.suppress(OSError):
                os.fsync(file.fileno())
