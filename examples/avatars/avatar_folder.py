"""A set of avatars whose captions are compositions of attributes, all of them known exactly.

In test/ each picture has a combination that train/ never has, though it has each of its two values
(`PAIRS` in avatar_names): a hair style in a colour, clothes in a colour, a hat on a background, or
glasses on a skin tone. An eighth of each pair's combinations is held out, no value in two of them;
which ones follows from a hash of the names alone. Captions in test/ name every attribute.

The folder has Hugging Face's imagefolder layout. The columns of metadata.jsonl are file_name, text,
the eleven attributes, `named` (those in the text) and, in test/, `held_out` (the pair). build.json
has the values of each attribute.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

import avatar_captions
import avatar_pictures
import made_folder
import npm_archives as npm
from avatar_names import PAIRS, PARTS
from diffjax.errors import UserError

CREDITS_FILE = "CREDITS.txt"
PACKAGE = npm.Package(
    "@dicebear/pixel-art",
    "9.4.3",
    "sha512-sGoG6MEs9ZWD+5+7OObVjp7IrF3E/UEKTg7T4kou9UXl2YXLVy8u8hHnAgTqWhiVZuyYozAVsK2E/oYvMigYBw"
    "==",
)

_VERSION = 1  # to be raised when the same archive would give another folder
_HELD_OUT_SHARE = 8  # one in so many of a pair's combinations
_TEST_SHARE = 10  # one in so many of the pictures
_CREDITS = """The pictures are drawn from parts of "Pixel Art" by DiceBear,
https://www.figma.com/community/file/1198754108850888330; CC0 1.0,
https://creativecommons.org/publicdomain/zero/1.0/. The parts are from npm's {package},
whose code is (c) Florian Koerner, MIT. Colours, beards without a mask, names and captions are
diffjax's.
"""

Avatar = dict[str, str]


def build(
    out: Path,
    *,
    count: int = 20_000,
    size: int = 32,
    seed: int = 0,
    archives: Path | None = None,
) -> str:
    """Makes the folder, all of it or nothing.

    Args:
      out: the folder to make; missing or empty, or from an earlier call with the same arguments.
      count: number of pictures, of which a tenth is held out.
      size: side of the pictures in pixels, a multiple of 16.
      seed: of attributes and captions, but not of what is held out.
      archives: a folder with the package's .tgz; None fetches it, if the cache folder lacks it.

    Returns:
      A line that says how many pictures there are.

    Raises:
      UserError: an argument is out of range, `out` holds something else or cannot be written, or
        the archive cannot be had, is not the published one or is not as expected.
    """
    least = _TEST_SHARE * len(PAIRS)
    if not least <= count <= 1_000_000:
        raise UserError(f"--count={count}; expected {least} to 1000000 pictures")
    if size % avatar_pictures.GRID or not 16 <= size <= 256:
        raise UserError(f"--size={size}; expected a multiple of 16, from 16 to 256")
    out = out.expanduser().resolve()
    attributes = {name: list(parts) for name, parts in PARTS.items()}
    identity = {"set": "avatars", "version": _VERSION, "source": PACKAGE.integrity}
    identity |= {"count": count, "size": size, "seed": seed, "attributes": attributes}
    another = "avatars of another number, size, seed or version"
    if (done := made_folder.summary_of(out, identity, what=another)) is not None:
        return f"already there: {done}"
    style = _style(npm.archive(PACKAGE, folder=archives))
    number = {"test": count // _TEST_SHARE}
    number["train"] = count - number["test"]
    summary = f"{number['train']} pictures in train, {number['test']} in test"
    with made_folder.made_whole(out, identity, summary=summary) as aside:
        for split in ("train", "test"):
            (aside / split).mkdir()
            with open(aside / split / "metadata.jsonl", "w", encoding="utf-8") as table:
                for row in rows(split, count=number[split], seed=seed):
                    found = avatar_pictures.shapes_of(style, row)
                    pixels = avatar_pictures.paint(found, size=size)
                    Image.fromarray(pixels).save(aside / split / row["file_name"])
                    table.write(json.dumps(row) + "\n")
        credit = _CREDITS.format(package=PACKAGE.spec)
        (aside / CREDITS_FILE).write_text(credit, encoding="utf-8")
    return summary


def rows(split: str, *, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Draws the rows of train/ or test/: an avatar each, with its caption."""
    chance = random.Random(f"diffjax avatars, {split}, {seed}")
    held_out = {pair: combinations_held_out(*pair) for pair in PAIRS}
    for number in range(count):
        # Each pair in turn; train/ has none.
        new = PAIRS[number % len(PAIRS)] if split == "test" else None
        avatar = _draw(chance, held_out, new)
        named = avatar_captions.named_attributes(chance) if new is None else tuple(PARTS)
        row = {
            "file_name": f"{number:06}.png",
            "text": avatar_captions.caption(avatar, named, chance),
            **avatar,
            "named": list(named),
        }
        yield row if new is None else {**row, "held_out": " and ".join(new)}


def _draw(
    chance: random.Random,
    held_out: dict[tuple[str, str], set[tuple[str, str]]],
    new: tuple[str, str] | None,
) -> Avatar:
    """Draws an avatar that has a held-out combination in the pair `new`, and in no other."""
    while True:
        avatar = {name: chance.choice(list(values)) for name, values in PARTS.items()}
        if new is not None:
            avatar |= zip(new, chance.choice(sorted(held_out[new])), strict=True)
        has = {pair for pair in PAIRS if (avatar[pair[0]], avatar[pair[1]]) in held_out[pair]}
        if has == ({new} if new else set()):
            return avatar


def combinations_held_out(first: str, second: str) -> set[tuple[str, str]]:
    """The combinations of two attributes' values that train/ lacks, no value in two of them."""
    every = [(a, b) for a in PARTS[first] for b in PARTS[second]]
    every.sort(
        key=lambda values: hashlib.sha256("\0".join((first, second, *values)).encode()).hexdigest()
    )
    chosen: set[tuple[str, str]] = set()
    for a, b in every:
        if len(chosen) < len(every) // _HELD_OUT_SHARE and not any(
            a == other or b == another for other, another in chosen
        ):
            chosen.add((a, b))
    return chosen


def _style(path: Path) -> dict[tuple[str, str], avatar_pictures.Shapes]:
    members = npm.read_members(path, prefixes=("package/lib/",))
    try:
        return avatar_pictures.read_style(members)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} has no readable style ({error}); expected the archive of {PACKAGE.spec}"
        ) from error
