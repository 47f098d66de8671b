"""Tables of a folder's images: their labels, their captions, or both.

A table is a labels.csv, or a metadata.csv, .jsonl or .json as in Hugging Face's imagefolder; its
name may be in any case, and its columns may have the names that people give them:

    file,label                          file_name,text                      file; Class
    a/b.png,cat                         a/b.png,a cat on a mat              a/b.png; cat

    {"file_name": "a/b.png", "text": "a cat on a mat", "label": 3, "licence": "CC0"}

A metadata.json is a list of such objects, or {"a/b.png": "a cat on a mat", ...}. Files are relative
to the table's folder. Other columns are ignored. Without a table, the captions may be in text files
next to the images, a/b.txt for a/b.png.
"""

from __future__ import annotations

import csv
import errno
import itertools
import json
import logging
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffjax.errors import UserError

TABLES = ("labels.csv", "labels.tsv", "metadata.csv", "metadata.jsonl", "metadata.json")

FILE = ("file_name", "file", "filename", "file name", "path", "image", "image_path")
LABEL = ("label", "class", "class_name", "category")
TEXT = ("text", "caption", "captions", "prompt", "description")
_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR = re.compile(r"\"?sep=.\"?\r?\n?", re.IGNORECASE)
_EXPECTED = "a header such as file,label or file_name,text"

_logger = logging.getLogger("diffjax")


@dataclass(frozen=True)
class Row:
    """One image's row; `text` and `label` are None if it has none."""

    text: str | None
    label: str | None


def tables_of(files: Iterable[str]) -> list[str]:
    """The tables among the files of a folder."""
    return [name for name in files if name.lower() in TABLES]


def read_table(path: Path, *, caption: str | None = None) -> dict[str, Row]:
    """Reads a table.

    Args:
      path: the table; its suffix determines the format.
      caption: the column of the captions; None for one of TEXT.

    Returns:
      {file: row}, in the order of the table; all rows have a text or none, and likewise a label.

    Raises:
      UserError: the table cannot be read, has no column of files, or neither labels nor captions; a
        row lacks what others have, or a file is repeated.
    """
    rows: dict[str, Row] = {}
    columns: _Columns | None = None
    first_label: tuple[int, bool] | None = None
    for number, values in _read(path, caption):
        where = f"{path} line {number}" if number else f"{path}"
        columns = columns or _columns(path, tuple(values), caption, where)
        name = _text(values, columns.file, where).removeprefix("./")
        text = None if columns.text is None else _text(values, columns.text, where)
        label = next((_label(values[c], where) for c in _find(tuple(values), LABEL)), None)
        if name in rows:
            raise UserError(f"{where}: {name} is listed twice; remove one of the rows")
        if text is None and label is None:
            raise UserError(f"{where}: {name} has no label; label all images")
        first_label = first_label or (number, label is not None)
        if first_label[1] != (label is not None):
            raise UserError(
                f"{where} has {'a' if label else 'no'} label, line {first_label[0]} has "
                f"{'none' if label else 'one'}; label all images or none"
            )
        rows[name] = Row(text, label)
    return rows


def as_files(
    root: Path, rows: Mapping[str, Row], files: Iterable[str], *, table: Path
) -> dict[str, Row]:
    """The rows by the files that they name; rows that name no file stay as they are.

    A name may also be absolute, have "." and ".." or Windows' backslashes, or have its accents
    composed otherwise than on this file system, as after a copy from macOS.

    Raises:
      UserError: two rows name one file.
    """
    known = set(files)
    composed = {unicodedata.normalize("NFC", name): name for name in known}
    found: dict[str, Row] = {}
    for name, row in rows.items():
        file = name
        if file not in known:
            for text in (name, name.replace("\\", "/")):
                relative = os.path.relpath(text, root) if os.path.isabs(text) else text
                plain = unicodedata.normalize("NFC", os.path.normpath(relative))
                if plain in composed:
                    file = composed[plain]
                    break
        if file in found:
            raise UserError(f"{table}: {file} is listed twice; remove one of the rows")
        found[file] = row
    return found


def read_text_files(root: Path, images: Sequence[str], files: Iterable[str]) -> list[str] | None:
    """The captions of images in text files next to them, of the same name.

    Args:
      root: the folder.
      images: paths relative to it.
      files: all files of the folder.

    Returns:
      A caption for each image; None if no image has such a file.

    Raises:
      UserError: only some images have one, one has two (.txt and .TXT), or one is empty or not
        UTF-8.
    """
    stems = set(map(_stem, images))
    texts: dict[str, str] = {}
    for name in files:
        stem = _stem(name)
        if not name.lower().endswith(".txt") or stem not in stems:
            continue
        if texts.setdefault(stem, name) != name:
            raise UserError(f"{root} has both {texts[stem]} and {name}; keep one of them")
    own = [texts.get(_stem(image)) for image in images]
    if not any(own):
        return None
    captions: list[str] = []
    without: list[str] = []
    for image, own_file in zip(images, own, strict=True):
        if own_file is None:
            without.append(image)
            continue
        try:
            text = _regular(root / own_file).read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read {root / own_file} ({error}); expected text in UTF-8"
            ) from error
        if not text:
            raise UserError(f"{root / own_file} is empty; expected the caption of {image}")
        captions.append(text)
    if without:
        raise UserError(
            f"{root}: {len(without)} of {len(images)} images have no caption in a .txt next to "
            f"them, such as {without[0]}; add the files, or remove those of the others"
        )
    return captions


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


@dataclass(frozen=True)
class _Columns:
    file: str
    text: str | None


def _find(names: Sequence[str], known: Sequence[str]) -> list[str]:
    plain = {name.strip().lower(): name for name in reversed(names) if isinstance(name, str)}
    return [plain[name] for name in known if name in plain]


def _columns(path: Path, names: tuple[str, ...], caption: str | None, where: str) -> _Columns:
    """Which columns hold the files and the captions; a row's label may be missing.

    Raises:
      UserError: none is of files, `caption` is not among them, or there is nothing but files.
    """
    files, texts, labels = _find(names, FILE), _find(names, TEXT), _find(names, LABEL)
    has = ", ".join(map(str, names))
    if not files:
        raise UserError(f"{where} has no file_name, but {has}; expected {_EXPECTED}")
    if caption is not None:
        texts = _find(names, (caption.strip().lower(),))
        if not texts:
            raise UserError(
                f"{where} has no column {caption!r}, but {has}; set config.data.caption to one of "
                "them"
            )
    elif len(texts) > 1:
        _logger.info(
            "%s: captions are read from the column %r; config.data.caption chooses another, as %r",
            path, texts[0], texts[1],
        )  # fmt: skip
    if not texts and not labels:
        raise UserError(f"{where} has no text and no label, but {has}; expected {_EXPECTED}")
    return _Columns(files[0], texts[0] if texts else None)


def _text(values: dict[str, Any], column: str, where: str) -> str:
    value = values.get(column)
    if not isinstance(value, str) or not value.strip():
        problem = f"has {column} {value!r}" if column in values else f"has no {column}"
        raise UserError(f"{where} {problem}; give every image a file name and a caption or label")
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


def _read(path: Path, caption: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, or 0 where there is none, {column: value}) of all rows."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _read_lines(path)
    return _read_json(path) if suffix == ".json" else _read_csv(path, caption)


def _regular(path: Path) -> Path:
    """The path, of a regular file: reading a pipe or a device could block for ever.

    Raises:
      OSError: it is something else, or missing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with _regular(path).open(encoding="utf-8-sig") as file:
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


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    expected = 'expected a list of objects like {"file_name": "a.png", "text": "a cat"}'
    try:
        found = json.loads(_regular(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); expected JSON in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); {expected}") from error
    if isinstance(found, dict):  # by file
        found = [
            {"file_name": name, **(row if isinstance(row, dict) else {"text": row})}
            for name, row in found.items()
        ]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UserError(f"{path} holds something else; {expected}")
    for row in found:
        yield 0, row


def _read_csv(path: Path, caption: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with _regular(path).open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            if _SEPARATOR.fullmatch(header):  # Excel's own first line
                skipped, header = 1, file.readline()
            else:
                skipped = 0
            rows = csv.DictReader(
                itertools.chain([header], file), delimiter=_delimiter(header),
                skipinitialspace=True, restval=None,
            )  # fmt: skip
            names = rows.fieldnames or ()
            if not _find(names, FILE) or not _find(names, (*TEXT, *LABEL, (caption or "").lower())):
                raise UserError(
                    f"{path} begins with {','.join(names) or 'nothing'}; expected {_EXPECTED}"
                )
            _distinct(path, names)
            for row in rows:
                if any(row.values()):  # a spreadsheet's empty rows are nothing but delimiters
                    yield rows.line_num + skipped, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} ({error}); expected a CSV file in UTF-8") from error


def _distinct(path: Path, names: Sequence[str]) -> None:
    """Raises UserError if two of the columns that are read have one name."""
    plain = [name.strip().lower() for name in names]
    for name in (*FILE, *LABEL, *TEXT):
        if plain.count(name) > 1:
            raise UserError(f"{path} has the column {name!r} twice; rename or remove one of them")


def _delimiter(header: str) -> str:
    """The delimiter that splits a header into the most columns; a comma for one column."""
    return max(_DELIMITERS, key=header.count)
