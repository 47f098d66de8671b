"""What a folder of images consists of: its image files, its splits, and what is left out.

Left out, counted by kind and named in one line: hidden and system files, formats that are not read,
tables of other names, other files, and what diffjax itself has written.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diffjax.data.images import SUFFIXES
from diffjax.errors import UserError

# Folders and files that systems and programs keep next to a user's; with a dot, all are.
_SYSTEM = frozenset(
    ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "lost+found",
     "system volume information")
)  # fmt: skip
# A workdir has its config and one of these.
_RUN = ("checkpoints", ".lock")
_OTHER_IMAGES = (
    ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm",
    ".svg", ".dng", ".cr2", ".nef", ".exr", ".hdr", ".tga",
)  # fmt: skip
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx", ".xml")

_MOST_KINDS = 8  # that a message names

# Names of splits, as people write them, in any case.
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
}  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems leave in a user's folders."""
    return name.startswith(".") or name.lower() in _SYSTEM


def is_image(name: str) -> bool:
    """Whether a file has the suffix of a PNG, JPEG or WebP."""
    return name.lower().endswith(SUFFIXES)


@dataclass
class LeftOut:
    """Paths that are no data, by kind."""

    paths: dict[str, list[str]] = field(default_factory=lambda: collections.defaultdict(list))

    def add(self, kind: str, path: str) -> None:
        """Adds a path."""
        self.paths[kind].append(path)

    def add_files(self, files: Iterable[str]) -> None:
        """Adds files, by their suffix."""
        for path in files:
            suffix = os.path.splitext(path)[1].lower()
            if suffix in _OTHER_IMAGES or is_image(path):
                self.add("images of other formats than PNG, JPEG and WebP", path)
            elif suffix in _TABLES:
                self.add(
                    "tables in sub-folders, or of other names than labels.csv and metadata.jsonl",
                    path,
                )
            else:
                self.add(f"{suffix} files" if suffix else "files without a suffix", path)

    @property
    def may_be_meant(self) -> bool:
        """Whether something is left out that a user may have meant as data."""
        return any(kind.startswith(("images", "tables", "folders next")) for kind in self.paths)

    def __str__(self) -> str:
        """Such as "hidden: 1 (.a.png); .md files: 2 (README.md, a.md)"; "" for nothing."""
        kinds = sorted(self.paths.items(), key=lambda item: (item[0].endswith(" files"), item[0]))
        said = [
            f"{kind}: {len(paths)} ({', '.join(sorted(paths)[:3])}{', ...' if paths[3:] else ''})"
            for kind, paths in kinds[:_MOST_KINDS]
        ]
        if rest := kinds[_MOST_KINDS:]:
            said.append(f"files of {len(rest)} other kinds: {sum(len(p) for _, p in rest)}")
        return "; ".join(said)


def _scan(directory: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder, sorted by name."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda e: e.name)
    except OSError as error:
        raise UserError(
            f"cannot read the folder {directory} ({error.strerror}); check its permissions"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it as a file gives a better message
        return False


def _is_run(names: set[str]) -> bool:
    return "config.json" in names and not names.isdisjoint(_RUN)


def walk(
    directory: Path,
    left_out: LeftOut | None = None,
    *,
    prefix: str = "",
    ancestors: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """Yields the relative paths, with slashes, of all files but hidden ones and those of runs.

    Links are followed, since sets are often assembled from links, except links to a parent
    folder, which would recurse without end.

    Args:
      directory: the folder.
      left_out: takes what is passed over.
      prefix: of the paths.
      ancestors: the folders that led here.

    Raises:
      UserError: a folder cannot be read.
    """
    left_out = LeftOut() if left_out is None else left_out
    real = os.path.realpath(directory)
    if real in ancestors:
        return
    entries = _scan(directory)
    if _is_run({entry.name for entry in entries}):
        left_out.add("folders of diffjax runs", prefix.rstrip("/") or ".")
        return
    for entry in entries:
        if is_hidden(entry.name):
            left_out.add("hidden", prefix + entry.name)
        elif _is_folder(entry):
            yield from walk(
                Path(entry.path), left_out, prefix=f"{prefix}{entry.name}/",
                ancestors=ancestors | {real},
            )  # fmt: skip
        else:
            yield prefix + entry.name


def existing(directory: Path) -> None:
    """Raises UserError unless it is a folder."""
    if not directory.is_dir():
        state = "a file" if directory.exists() else "missing"
        raise UserError(f"{directory} is {state}; expected a folder of PNG, JPEG or WebP images")


def holds_images(directory: Path) -> bool:
    """Returns whether a folder or its sub-folders contain an image."""
    return directory.is_dir() and any(map(is_image, walk(directory)))


def split_folders(directory: Path) -> dict[str, str]:
    """Returns {"train", "test" or "val": sub-folder}; {} if the folder as a whole is one split.

    A class may be called "train" too (CIFAR-100 has one), so sub-folders are splits only if there
    are one to train on and one to test on, or if all of them have names of splits.

    Raises:
      UserError: two sub-folders have names of the same split.
    """
    names = [
        entry.name
        for entry in _scan(directory)
        if not is_hidden(entry.name) and _is_folder(entry) and holds_images(Path(entry.path))
    ]
    found: dict[str, list[str]] = {}
    for name in names:
        if (split := SPLIT_NAMES.get(name.lower())) is not None:
            found.setdefault(split, []).append(name)
    others = len(names) - sum(map(len, found.values()))
    if not found or (others and not ("train" in found and len(found) > 1)):
        return {}
    for split, several in found.items():
        if len(several) > 1:
            raise UserError(
                f"{directory} has {' and '.join(several)}, both names of the split {split!r}; "
                "rename or merge them"
            )
    return {split: several[0] for split, several in found.items()}


def next_to_splits(directory: Path, splits: dict[str, str]) -> LeftOut:
    """What a folder of splits has besides them."""
    left_out = LeftOut()
    for entry in _scan(directory):
        if entry.name in splits.values():
            continue
        if is_hidden(entry.name):
            left_out.add("hidden", entry.name)
        elif not _is_folder(entry):
            if is_image(entry.name):
                left_out.add("images next to the splits", entry.name)
            else:
                left_out.add_files([entry.name])
        elif holds_images(Path(entry.path)):
            left_out.add("folders next to the splits", entry.name)
    return left_out
