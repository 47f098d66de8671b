"""A folder of PNG, JPEG and WebP files as a data set.

The layouts, where `root` is the folder, or one of its splits train/, test/ or val/ (or training/,
Test/, validation/, ...: `listing.SPLIT_NAMES`):

    root/*.png                      no labels
    root/<class>/**/*.png           one sub-folder per class
    root/**/*.png, root/labels.csv  a table of labels (`tables`)
    root/**/*.png, root/metadata.jsonl (or .csv, .json)
                                    captions, as in Hugging Face's imagefolder; the classes come
                                    from the column "label", if there is one, and never from the
                                    sub-folders
    root/**/x.png, root/**/x.txt    captions in text files next to the images

Examples are sorted by path, so that the order is the same on every file system.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from diffjax.data import encoded, listing, tables
from diffjax.data.images import Size
from diffjax.data.sources import UNLABELLED, ImageSource
from diffjax.errors import UserError

_logger = logging.getLogger("diffjax")


def splits(directory: Path) -> tuple[str, ...]:
    """Returns the splits of a folder: some of "train", "test", "val", or ("train",).

    Raises:
      UserError: there is no such folder.
    """
    listing.existing(directory)
    return tuple(listing.split_folders(directory)) or ("train",)


@dataclass(frozen=True)
class _Listing:
    """The images of one split: paths relative to `root`, class names and captions."""

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...] | None
    captions: tuple[str, ...] | None
    left_out: listing.LeftOut


def _class_order(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the distinct names sorted, numerically if all are numbers (9 before 10)."""
    distinct = sorted(set(names))
    if all(name.isdecimal() for name in distinct):
        distinct.sort(key=int)
    return tuple(distinct)


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


def _list_split(root: Path, caption: str | None) -> _Listing:
    """Lists the images of one split with their labels and captions."""
    left_out = listing.LeftOut()
    everything = list(listing.walk(root, left_out))
    files = tuple(sorted(filter(listing.is_image, everything)))
    others = [path for path in everything if not listing.is_image(path)]
    if not files:
        left_out.add_files(others)
        has = f"; convert or move what it has: {left_out}" if left_out.paths else ""
        raise UserError(f"{root} holds no images; expected PNG, JPEG or WebP files{has}")
    found = tables.tables_of(others)
    if len(found) > 1:
        raise UserError(f"{root} has both {found[0]} and {found[1]}; keep one of them")
    used = set(found)
    classes: tuple[str, ...] | None
    captions: tuple[str, ...] | None = None
    if found:
        table = tables.read_table(root / found[0], caption=caption)
        table = tables.as_files(root, table, files, table=root / found[0])
        _match(root / found[0], table, files)
        rows = [table[file] for file in files]
        # A table has labels in all its rows or in none, and likewise texts.
        classes = tuple(row.label for row in rows if row.label is not None) or None
        captions = tuple(row.text for row in rows if row.text is not None) or None
    elif (texts := tables.read_text_files(root, files, others)) is not None:
        classes, captions = None, tuple(texts)
        stems = {os.path.splitext(file)[0] for file in files}
        used = {
            name
            for name in others
            if name.lower().endswith(".txt") and os.path.splitext(name)[0] in stems
        }
    else:
        classes = _folders_as_classes(root, files)
    if caption is not None and captions is None:
        raise UserError(
            f"config.data.caption = {caption!r}, and {root} has no table of captions; add a "
            "metadata.jsonl, or leave the key unset"
        )
    left_out.add_files(path for path in others if path not in used)
    return _Listing(root, files, classes, captions, left_out)


def _folders_as_classes(root: Path, files: Sequence[str]) -> tuple[str, ...] | None:
    """Each image's first folder; None if all images are in the root."""
    loose = [file for file in files if "/" not in file]
    if len(loose) == len(files):
        return None
    if loose:
        raise UserError(
            f"{root} has both class folders and images outside of them: {_and_others(loose)}; move "
            "these into a class folder, or add a labels.csv"
        )
    classes = {file.split("/", 1)[0] for file in files}
    if len(classes) == 1:
        (only,) = classes
        if len(inner := listing.split_folders(root / only)) > 1:
            raise UserError(
                f"{root} has the single folder {only}, which has the splits "
                f"{', '.join(inner.values())}; set config.data.name=folder:{root / only}"
            )
    return tuple(file.split("/", 1)[0] for file in files)


class _Files:
    """The encoded images of one split."""

    def __init__(self, listed: _Listing, labels: Sequence[int]) -> None:
        self._root = os.fspath(listed.root)
        self._files = listed.files
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

    def entry(self, row: int) -> str:
        """The image's name and size in bytes, which tell a set from another."""
        try:
            size = os.stat(self.where(row)).st_size
        except OSError:
            size = -1
        return f"{self._files[row]}\0{size}"


def index_crc32(files: Sequence[str]) -> int:
    """The checksum of a set's index: its files' names and sizes, not where the set is."""
    return zlib.crc32("\n".join(files).encode(errors="surrogateescape"))


def load_folder(
    directory: Path,
    *,
    name: str,
    split: str,
    image_size: Size | None,
    channels: int | None,
    memory_limit_mb: int,
    on_broken: str = "stop",
    caption: str | None = None,
) -> ImageSource:
    """Loads one split of a folder of images.

    Args:
      directory: the folder.
      name: the set's name, for messages.
      split: "train", "test" or "val", which the folder may call otherwise.
      image_size: side of the square images, or (height, width); None requires that all images have
        one size.
      channels: 1 or 3; None gives 1 if no image has colour, else 3.
      memory_limit_mb: decoded sets of more MiB than this are streamed.
      on_broken: "stop" at images that can't be read, or "skip" them; both name them.
      caption: the column of the captions; None for the usual names.

    Returns:
      The images sorted by path. The classes are those of the train split, sorted, so that labels
      agree between splits; the captions are those of the requested split.

    Raises:
      UserError: the folder or split is missing or empty, files cannot be read, sizes differ and
        `image_size` is None, or the labels or captions do not match the images.
    """
    known = splits(directory)
    folders = listing.split_folders(directory)
    wanted = listing.SPLIT_NAMES.get(split.lower(), split)
    if wanted not in known:
        raise UserError(
            f"{directory} has no split {split!r}; it has {', '.join(sorted(known))}; put its "
            f"images into {directory}/{split}, and those of others into folders next to it"
        )
    if folders:
        _say_splits(directory, name, folders)
    listed = _list_split(directory / folders[wanted] if folders else directory, caption)
    reference = listed
    if folders and wanted != "train" and "train" in folders:
        reference = _list_split(directory / folders["train"], caption)
    if (listed.classes is None) != (reference.classes is None):
        raise UserError(
            f"{listed.root} and {reference.root}: one has labels, the other has none; label "
            "both or neither"
        )
    class_names = _class_order(reference.classes or ())
    numbers = {label: number for number, label in enumerate(class_names)}
    labels = [UNLABELLED] * len(listed.files)
    if listed.classes is not None:
        if strange := sorted(set(listed.classes) - set(class_names)):
            raise UserError(
                f"{listed.root} has the class {_and_others(strange)}, which {reference.root} "
                "lacks; the splits need the same classes"
            )
        labels = [numbers[label] for label in listed.classes]
    _say_left_out(listed.root, listed.left_out)
    _logger.info("%s: %d images read from %s", name, len(listed.files), listed.root)
    files = _Files(listed, labels)
    return encoded.build_source(
        files,
        name=name,
        class_names=class_names,
        image_size=image_size,
        channels=channels,
        memory_limit_mb=memory_limit_mb,
        on_broken=on_broken,
        captions=listed.captions,
        index=lambda rows: index_crc32([files.entry(row) for row in rows]),
    )


def _say_splits(directory: Path, name: str, folders: dict[str, str]) -> None:
    """Says which sub-folders are splits and what is left out next to them.

    Raises:
      UserError: there is a table, which can only be within a split.
    """
    with_tables = os.listdir(directory)
    if found := tables.tables_of(with_tables):
        raise UserError(
            f"{directory / found[0]} is next to the splits {', '.join(folders.values())}; put a "
            f"{found[0]} into each of them"
        )
    said = (f"{folder}/ ({split})" if folder != split else f"{split}/" for split, folder in
            folders.items())  # fmt: skip
    _logger.info("%s: its splits are %s", name, ", ".join(said))
    _say_left_out(directory, listing.next_to_splits(directory, folders))


def _say_left_out(directory: Path, left_out: listing.LeftOut) -> None:
    if left_out.paths:
        level = logging.WARNING if left_out.may_be_meant else logging.INFO
        _logger.log(level, "%s: left out: %s", directory, left_out)
