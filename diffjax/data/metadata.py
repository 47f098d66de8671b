"""Captions of a folder of images, in the format of Hugging Face's imagefolder.

A metadata.jsonl has one JSON object per line, a metadata.csv one row per line after a header:

    {"file_name": "a/b.png", "text": "a cat on a mat"}
    {"file_name": "a/c.png", "text": "a dog", "label": 3, "licence": "CC0"}

file_name is relative to the table's folder and text is the caption. A column "label", text or
integer, gives the classes if every row has it. Other columns are ignored.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffjax.errors import UserError

METADATA_FILES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Row:
    """One image's row; `label` is None if it has none."""

    text: str
    label: str | None


def read_metadata(path: Path) -> dict[str, Row]:
    """Reads a metadata.jsonl or metadata.csv.

    Args:
      path: the table; its suffix determines the format.

    Returns:
      {file_name: row}, in the order of the table.

    Raises:
      UserError: the file cannot be read, a line is not a JSON object, a row lacks a file_name or
        text, a file_name is repeated, or only some rows have a label.
    """
    rows: dict[str, Row] = {}
    first_label: tuple[int, bool] | None = None
    for number, values in _read_json(path) if path.suffix == ".jsonl" else _read_csv(path):
        where = f"{path} line {number}"
        name = _text(values, "file_name", where).removeprefix("./")
        text = _text(values, "text", where)
        label = _label(values.get("label"), where)
        if name in rows:
            raise UserError(f"{where}: {name} is listed twice; remove one of the rows")
        first_label = first_label or (number, label is not None)
        if first_label[1] != (label is not None):
            raise UserError(
                f"{where} has {'a' if label else 'no'} label, line {first_label[0]} has "
                f"{'none' if label else 'one'}; label all images or none"
            )
        rows[name] = Row(text, label)
    return rows


def _text(values: dict[str, Any], column: str, where: str) -> str:
    value = values.get(column)
    if not isinstance(value, str) or not value.strip():
        problem = f"has {column} {value!r}" if column in values else f"has no {column}"
        raise UserError(f"{where} {problem}; give every image a file_name and a text, its caption")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {column} {value!r} has a lone surrogate; write valid Unicode"
        ) from error
    return value.strip()


def _label(value: object, where: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where} has label {value!r}; expected text or an integer")
    return str(value).strip() or None


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) for all lines that are not empty."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                values = json.loads(line)
                if not isinstance(values, dict):
                    raise UserError(
                        f"{path} line {number} is {line.strip()[:40]!r}; expected a JSON object "
                        'like {"file_name": "a.png", "text": "a cat"}'
                    )
                yield number, values
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); expected JSON lines in UTF-8") from error
    except (ValueError, RecursionError) as error:  # ValueError: an integer of too many digits
        raise UserError(
            f"{path} line {number} is not JSON ({error}); expected a JSON object like "
            '{"file_name": "a.png", "text": "a cat"}'
        ) from error


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, {column: value}) for all rows."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"file_name", "text"} <= set(rows.fieldnames or ()):
                raise UserError(
                    f"{path} begins with {','.join(rows.fieldnames or ()) or 'nothing'}; "
                    "expected a header with the columns file_name and text"
                )
            for row in rows:
                yield rows.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} ({error}); expected a CSV file in UTF-8") from error
