"""A folder of PNG, JPEG and WebP files as a data set.

The layouts, where `root` is the folder, or its train/ or test/ if it has both:

    root/*.png                      no labels
    root/<class>/**/*.png           one sub-folder per class
    root/**/*.png, root/labels.csv  a table with the columns file (relative to root) and label
    root/**/*.png, root/metadata.jsonl (or .csv)
                                    captions, as in Hugging Face's imagefolder (`metadata`); the
                                    classes come from its column "label", if it has one, and
                                    never from the sub-folders

Examples are sorted by path, so that the order is the same on every file system.
"""

from __future__ import annotations

import csv
import errno
import logging
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diffjax.data import encoded
from diffjax.data.images import SUFFIXES
from diffjax.data.metadata import METADATA_FILES, read_metadata
from diffjax.data.sources import UNLABELLED, ImageSource, number_captions
from diffjax.errors import UserError

SPLITS = ("train", "test", "val", "validation", "valid")
LABELS_FILE = "labels.csv"

# Unsupported image formats: these files get a warning, other files do not.
_OTHER_SUFFIXES = (".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".jxl", ".ppm")

_logger = logging.getLogger("diffjax")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _scan(directory: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder that are not hidden, sorted by name."""
    try:
        with os.scandir(directory) as entries:
            return sorted((e for e in entries if not _hidden(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise UserError(
            f"cannot read the folder {directory} ({error.strerror}); check its permissions"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it as a file gives a better message
        return False


def _subfolders(directory: Path) -> list[str]:
    return [entry.name for entry in _scan(directory) if _is_folder(entry)]


def _walk(
    directory: Path, prefix: str = "", ancestors: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yields the relative paths, with slashes, of all files that are not hidden.

    Links are followed, since sets are often assembled from links, except links to a parent
    folder, which would recurse without end.
    """
    real = os.path.realpath(directory)
    if real in ancestors:
        return
    for entry in _scan(directory):
        if _is_folder(entry):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", ancestors | {real})
        else:
            yield prefix + entry.name


def _existing(directory: Path) -> None:
    if not directory.is_dir():
        state = "a file" if directory.exists() else "missing"
        raise UserError(f"{directory} is {state}; expected a folder of PNG, JPEG or WebP images")


def holds_images(directory: Path) -> bool:
    """Returns whether a folder or its sub-folders contain an image."""
    return directory.is_dir() and any(path.lower().endswith(SUFFIXES) for path in _walk(directory))


def _split_folders(directory: Path) -> tuple[str, ...]:
    """Returns the sub-folders that are splits; () if the folder as a whole is one split.

    A class may be called "train" too (CIFAR-100 has one), so sub-folders are splits only if
    both train/ and test/ exist, or all sub-folders have names of splits.
    """
    names = _subfolders(directory)
    if {"train", "test"} <= set(names) or set(names) <= set(SPLITS):
        return tuple(name for name in names if name in SPLITS)
    return ()


def splits(directory: Path) -> tuple[str, ...]:
    """Returns the splits of a folder: its sub-folders train/, test/, ..., or ("train",).

    Raises:
      UserError: there is no such folder.
    """
    _existing(directory)
    return _split_folders(directory) or ("train",)


@dataclass(frozen=True)
class _Listing:
    """The images of one split: paths relative to `root`, class names and captions."""

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...] | None
    captions: tuple[str, ...] | None = None


def _class_order(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the distinct names sorted, numerically if all are numbers (9 before 10)."""
    distinct = sorted(set(names))
    if all(name.isdecimal() for name in distinct):
        distinct.sort(key=int)
    return tuple(distinct)


def _read_labels(path: Path) -> dict[str, str]:
    """Returns {file: label} from a labels.csv."""
    labels: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise UserError(
                    f"{path} begins with {','.join(rows.fieldnames or ()) or 'nothing'}; "
                    "expected the header file,label"
                )
            for row in rows:
                name = (row["file"] or "").strip().removeprefix("./")
                label = (row["label"] or "").strip()
                if not name or not label:
                    raise UserError(f"{path} line {rows.line_num}: expected a file and a label")
                if name in labels:
                    raise UserError(f"{path} line {rows.line_num}: {name} is listed twice")
                labels[name] = label
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} ({error}); expected a CSV file in UTF-8") from error
    return labels


def _and_others(names: Sequence[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} others)" if len(names) > 1 else "")


def _match(table: Path, rows: Collection[str], files: Sequence[str]) -> None:
    """Raises UserError unless a table's rows and a folder's images are the same files."""
    if absent := sorted(set(rows) - set(files)):
        raise UserError(
            f"{table} names {_and_others(absent)}, which is not an image in {table.parent}; "
            "remove the row or add the file"
        )
    if unlisted := sorted(set(files) - set(rows)):
        raise UserError(
            f"{table} has no row for {_and_others(unlisted)}; add the row or remove the file"
        )


def _list_split(root: Path) -> _Listing:
    """Lists the images of one split with their labels and captions."""
    everything = list(_walk(root))
    files = sorted(path for path in everything if path.lower().endswith(SUFFIXES))
    others = sorted(path for path in everything if path.lower().endswith(_OTHER_SUFFIXES))
    if not files:
        hint = f"; convert {_and_others(others)}" if others else ""
        raise UserError(f"{root} holds no images; expected PNG, JPEG or WebP files{hint}")
    if others:
        _logger.warning(
            "%s: skipped, since neither PNG, JPEG nor WebP: %s", root, _and_others(others)
        )
    tables = [name for name in (LABELS_FILE, *METADATA_FILES) if name in everything]
    if len(tables) > 1:
        raise UserError(f"{root} has both {tables[0]} and {tables[1]}; keep one of them")
    if LABELS_FILE in tables:
        labels = _read_labels(root / LABELS_FILE)
        _match(root / LABELS_FILE, labels, files)
        return _Listing(root, tuple(files), tuple(labels[file] for file in files))
    if tables:
        table = read_metadata(root / tables[0])
        _match(root / tables[0], table, files)
        rows = [table[file] for file in files]
        # A table has labels in all its rows or in none.
        classes = tuple(row.label for row in rows if row.label is not None)
        return _Listing(root, tuple(files), classes or None, tuple(row.text for row in rows))
    loose = [file for file in files if "/" not in file]
    if len(loose) == len(files):
        return _Listing(root, tuple(files), None)
    if loose:
        raise UserError(
            f"{root} has both class folders and images outside of them: {_and_others(loose)}; move "
            f"these into a class folder, or add a {LABELS_FILE}"
        )
    return _Listing(root, tuple(files), tuple(file.split("/", 1)[0] for file in files))


class _Files:
    """The encoded images of one split."""

    def __init__(self, listing: _Listing, labels: Sequence[int]) -> None:
        self._root = os.fspath(listing.root)
        self._files = listing.files
        self._labels = labels

    def __len__(self) -> int:
        return len(self._files)

    def read(self, rows: Sequence[int]) -> list[tuple[bytes | OSError, int]]:
        return [(self._read_one(row), self._labels[row]) for row in rows]

    def _read_one(self, row: int) -> bytes | OSError:
        try:
            with self.open(row) as file:
                return file.read()
        except OSError as error:
            return error

    def open(self, row: int) -> BinaryIO:
        path = self.where(row)
        # Reading a pipe or a device could block for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return open(path, "rb")

    def where(self, row: int) -> str:
        return os.path.join(self._root, self._files[row])


def load_folder(
    directory: Path,
    *,
    name: str,
    split: str,
    image_size: int | None,
    channels: int | None,
    memory_limit_mb: int,
) -> ImageSource:
    """Loads one split of a folder of images.

    Args:
      directory: the folder.
      name: the set's name, for messages.
      split: "train", or the name of a sub-folder that is a split.
      image_size: side of the square images; None requires that all have one size.
      channels: 1 or 3; None gives 1 if no image has colour, else 3.
      memory_limit_mb: decoded sets of more MiB than this are streamed.

    Returns:
      The images sorted by path. The classes are those of the train split, sorted, so that labels
      agree between splits; the captions are those of the requested split.

    Raises:
      UserError: the folder or split is missing or empty, files cannot be read, sizes differ and
        `image_size` is None, or the labels or captions do not match the images.
    """
    known = splits(directory)
    if split not in known:
        raise UserError(
            f"{directory} has no split {split!r}; it has {', '.join(known)}; put images for "
            f"another split into {directory}/train and {directory}/{split}"
        )
    divided = bool(_split_folders(directory))
    for table in (LABELS_FILE, *METADATA_FILES):
        if divided and (directory / table).is_file():
            raise UserError(
                f"{directory / table} is next to the splits {', '.join(known)}; put a {table} "
                "into each of them"
            )
    listing = _list_split(directory / split if divided else directory)
    reference = listing
    if divided and split != "train" and "train" in known:
        reference = _list_split(directory / "train")
    if (listing.classes is None) != (reference.classes is None):
        raise UserError(
            f"{listing.root} and {reference.root}: one has labels, the other has none; label "
            "both or neither"
        )
    class_names = _class_order(reference.classes or ())
    numbers = {label: number for number, label in enumerate(class_names)}
    labels = [UNLABELLED] * len(listing.files)
    if listing.classes is not None:
        if strange := sorted(set(listing.classes) - set(class_names)):
            raise UserError(
                f"{listing.root} has the class {_and_others(strange)}, which {reference.root} "
                "lacks; the splits need the same classes"
            )
        labels = [numbers[label] for label in listing.classes]
    captions: tuple[tuple[str, ...], np.ndarray | None] = ((), None)
    if listing.captions is not None:
        captions = number_captions(listing.captions)
    _logger.info("%s: %d images read from %s", name, len(listing.files), listing.root)
    return encoded.build_source(
        _Files(listing, labels),
        name=name,
        class_names=class_names,
        image_size=image_size,
        channels=channels,
        memory_limit_mb=memory_limit_mb,
        captions=captions,
    )
