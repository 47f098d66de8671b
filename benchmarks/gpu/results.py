"""Rows of figures that are on disk as soon as they are known, and a page of them.

A row is {"part", "what", figure: value}. `results.jsonl` grows by a line a row; `results.md` is
written again from all rows.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import number
from diffjax.files import atomic_write

ROWS, PAGE = "results.jsonl", "results.md"
Row = dict[str, Any]


def append(folder: Path, row: Row) -> None:
    """Adds a row to a folder's results, and rewrites the page."""
    with open(folder / ROWS, "a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    text = page(read(folder))
    atomic_write(folder / PAGE, lambda file: file.write(text.encode()))


def read(folder: Path) -> list[Row]:
    """The rows of a folder, without a last line that was cut."""
    path = folder / ROWS
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def page(rows: Sequence[Row]) -> str:
    """Markdown: a table for each part; pictures follow the table that names them."""
    text = ["# diffjax on a GPU"]
    for part in dict.fromkeys(row["part"] for row in rows):
        of_part = [row for row in rows if row["part"] == part]
        text.append(f"## {part}")
        text.append(_table([{k: v for k, v in row.items() if k != "part"} for row in of_part]))
        pictures = [row["picture"] for row in of_part if row.get("picture")]
        text += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(text) + "\n"


def _table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [_line(name.replace("_", " ") for name in columns), _line("---" for _ in columns)]
    lines += [_line(_cell(row.get(name)) for name in columns) for row in rows]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return str(value).replace("|", "\\|").replace("\n", " ")
