"""A set of captioned emoji whose captions are compositions: name, skin tone, style.

    waving hand, medium skin tone, twitter style

Two kinds of combinations are held out in test/, to tell what a model has learnt of the parts
from what it has memorised of the wholes:

    skin_tone   a name in a skin tone that it never has in train/, in all styles at once, though
                it has at least three others there;
    style       an object (a name that comes in no skin tones) in a style that it never has in
                train/, though it has another there.

Which ones follows from a hash of the names alone. A picture that train/ has pixel for pixel is
held out nowhere: it is left out of test/ instead.

The folder has Hugging Face's imagefolder layout, and each row has the parts of its caption as
columns, too: name, skin_tone, style, category, subcategory, unified (the code points), and held_out
in test/.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

import made_folder
import npm_archives as npm
from diffjax.errors import UserError
from emoji_names import SKIN_TONES, names

CREDITS_FILE = "CREDITS.txt"

_VERSION = 1  # to be raised when the same archives would give another folder
_TONE_SHARE, _STYLE_SHARE = 0.10, 0.08
_TONES_KEPT = 3


@dataclass(frozen=True)
class Style:
    """Where a style's pictures lie: `folder` in the archive of `package`, `side` pixels wide."""

    package: npm.Package
    folder: str
    suffix: str
    side: int
    credit: str


STYLES = {
    "twitter": Style(
        npm.Package(
            "emoji-datasource-twitter",
            "16.0.0",
            "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL"
            "2eyELQ==",
        ),
        "package/img/twitter/64/",
        ".png",
        64,
        "Twemoji 16.0.1, (c) Twitter, Inc and other contributors, "
        "https://github.com/jdecked/twemoji; CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/",
    ),
    "google": Style(
        npm.Package(
            "emoji-datasource-google",
            "16.0.0",
            "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8Dl"
            "PhfQ3A==",
        ),
        "package/img/google/64/",
        ".png",
        64,
        "Noto Emoji 2.048, (c) Google LLC, https://github.com/googlefonts/noto-emoji; Apache-2.0, "
        "https://www.apache.org/licenses/LICENSE-2.0",
    ),
    "fluent": Style(
        npm.Package(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lU"
            "AG3h7g==",
        ),
        "package/assets/",
        ".webp",
        256,
        "Fluent Emoji, (c) Microsoft Corporation, https://github.com/microsoft/fluentui-emoji, "
        "packaged by LobeHub; MIT, https://opensource.org/license/mit",
    ),
}

# These have the names, too, in one and the same emoji.json.
_NAMED = ("twitter", "google")


@dataclass(frozen=True)
class _Emoji:
    """One emoji, in whatever style; `tone` is "" where it has none."""

    name: str
    tone: str
    category: str
    subcategory: str
    unified: str
    toned: bool  # whether its name comes in skin tones at all


@dataclass(frozen=True)
class _Picture:
    emoji: _Emoji
    style: str
    pixels: np.ndarray
    held_out: str = ""

    @property
    def caption(self) -> str:
        tone = f"{self.emoji.tone} skin tone" if self.emoji.tone else ""
        return ", ".join(filter(None, [self.emoji.name, tone, f"{self.style} style"]))

    @property
    def file_name(self) -> str:
        return f"{self.style}/{self.emoji.unified.lower()}.png"


def build(
    out: Path,
    *,
    styles: Sequence[str] = ("twitter", "google"),
    size: int = 64,
    archives: Path | None = None,
) -> str:
    """Makes the folder, all of it or nothing.

    Args:
      out: the folder to make; missing or empty, or from an earlier call with the same arguments.
      styles: of "twitter", "google" and "fluent", in any order.
      size: side of the images in pixels, at most that of the smallest style's (64; fluent 256).
      archives: a folder with the packages' .tgz files; None fetches what the cache folder lacks.

    Returns:
      A line that says how many images there are.

    Raises:
      UserError: an argument is out of range, `out` holds something else or cannot be written, or
        an archive cannot be had, is not the published one or is not as expected.
    """
    styles = _known_styles(styles)
    limit = min(STYLES[style].side for style in styles)
    if not 8 <= size <= limit:
        raise UserError(
            f"--size={size}; expected 8 to {limit}, the size of the pictures in {','.join(styles)}"
        )
    out = out.expanduser().resolve()
    sources = {style: STYLES[style].package.integrity for style in styles}
    identity = {"set": "emoji", "version": _VERSION, "size": size, "sources": sources}
    another = "an emoji set of other styles, size or version"
    if (done := made_folder.summary_of(out, identity, what=another)) is not None:
        return f"already there: {done}"
    entries, encoded = read_archives(styles, archives)
    pictures = _pictures(entries, encoded, size=size)
    train, test, dropped = _divide(pictures)
    counts = Counter(picture.held_out for picture in test)
    summary = (
        f"{len(train)} images in train, {len(test)} in test "
        f"({counts['skin_tone']} in an unseen skin tone, {counts['style']} in an unseen style; "
        f"{dropped} left out, as train has the same pixels)"
    )
    _write(out, {"train": train, "test": test}, identity, summary)
    return summary


def _known_styles(styles: Sequence[str]) -> tuple[str, ...]:
    known = ",".join(STYLES)
    if not styles or len(set(styles)) < len(styles) or set(styles) - set(STYLES):
        raise UserError(f"--styles={','.join(styles)}; expected some of {known}, each once")
    return tuple(style for style in STYLES if style in styles)


def read_archives(
    styles: Sequence[str], archives: Path | None
) -> tuple[list[dict[str, Any]], dict[str, dict[str, bytes]]]:
    """Returns emoji.json, and {style: {code points, as files are called: encoded image}}."""
    naming = next((style for style in _NAMED if style in styles), _NAMED[0])
    paths = {
        style: npm.archive(STYLES[style].package, folder=archives)
        for style in dict.fromkeys([*styles, naming])
    }
    entries: list[dict[str, Any]] = []
    encoded: dict[str, dict[str, bytes]] = {}
    for style, path in paths.items():
        folder, suffix = STYLES[style].folder, STYLES[style].suffix
        members = npm.read_members(path, prefixes=(folder, "package/emoji.json"))
        if style == naming:
            try:
                entries = json.loads(members["package/emoji.json"])
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"{path} has no readable package/emoji.json; expected the archive of "
                    f"{STYLES[style].package.spec}"
                ) from error
        if style in styles:
            encoded[style] = {
                name.removeprefix(folder).removesuffix(suffix): data
                for name, data in members.items()
                if name.startswith(folder) and name.endswith(suffix)
            }
            if not encoded[style]:
                raise UserError(
                    f"{path} has no {suffix} files in {folder}; expected the archive of "
                    f"{STYLES[style].package.spec}"
                )
    return entries, encoded


def _emoji(entries: Sequence[dict[str, Any]]) -> list[_Emoji]:
    """Returns all emoji of an emoji.json, each skin tone as one of its own."""
    found = []
    for name, entry in zip(names(entries), entries, strict=True):
        variations = {"": entry, **entry.get("skin_variations", {})}
        if entry["unified"] in SKIN_TONES:  # a patch of the colour itself
            variations = {entry["unified"]: entry}
        for tones, variation in variations.items():
            # Two people of one skin tone are said to have that one.
            distinct = dict.fromkeys(SKIN_TONES[tone] for tone in tones.split("-") if tone)
            found.append(
                _Emoji(
                    name,
                    " and ".join(distinct),
                    entry["category"],
                    entry["subcategory"],
                    variation["unified"],
                    variations != {"": entry},
                )
            )
    return found


def _pictures(
    entries: Sequence[dict[str, Any]], encoded: dict[str, dict[str, bytes]], *, size: int
) -> list[_Picture]:
    """Returns every emoji in every style that has it, on white, sorted by file."""
    pictures = []
    for emoji in _emoji(entries):
        for style, files in encoded.items():
            data = files.get(emoji.unified.lower())
            if data is None:
                continue
            try:
                pixels = _on_white(data)
            except Exception as error:  # damage has many names in Pillow, and one remedy
                unknown = isinstance(error, UnidentifiedImageError)
                raise UserError(
                    f"{STYLES[style].package.file_name}: cannot read {emoji.unified.lower()} "
                    f"({'no PNG or WebP' if unknown else error}); fetch the archive again"
                ) from error
            pictures.append(_Picture(emoji, style, to_size(pixels, size)))
    return sorted(pictures, key=lambda picture: picture.file_name)


def _on_white(data: bytes) -> np.ndarray:
    """Returns uint8 (H, W, 3) of a PNG or WebP, laid on white."""
    with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
        picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def to_size(pixels: np.ndarray, size: int) -> np.ndarray:
    """Returns uint8 (size, size, 3): set in the middle of a white square, then resized."""
    height, width, _ = pixels.shape
    if (height, width) == (size, size):
        return pixels
    side = max(height, width)
    square = Image.new("RGB", (side, side), "white")
    square.paste(Image.fromarray(pixels), ((side - width) // 2, (side - height) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def _chance(*what: str) -> float:
    """Returns a number in [0, 1) that follows from some words alone."""
    digest = hashlib.sha256("\0".join(("diffjax emoji", *what)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _choose(candidates: dict[str, set[str]], *, kind: str, share: float, keep: int) -> set[Any]:
    """Chooses (name, value) pairs of {name: values}; at least `keep` values of a name are not."""
    chosen = set()
    for name, values in candidates.items():
        drawn = sorted((_chance(kind, name, value), value) for value in values)
        most = max(0, len(drawn) - keep)
        chosen |= {(name, value) for chance, value in drawn[:most] if chance < share}
    return chosen


def _divide(pictures: Sequence[_Picture]) -> tuple[list[_Picture], list[_Picture], int]:
    """Returns (train, test, how many were left out for having a twin in train)."""
    tones: dict[str, set[str]] = {}
    styles: dict[str, set[str]] = {}
    for picture in pictures:
        emoji = picture.emoji
        if emoji.tone in SKIN_TONES.values():
            tones.setdefault(emoji.name, set()).add(emoji.tone)
        if not emoji.toned:
            styles.setdefault(emoji.name, set()).add(picture.style)
    new_tone = _choose(tones, kind="skin_tone", share=_TONE_SHARE, keep=_TONES_KEPT)
    new_style = _choose(styles, kind="style", share=_STYLE_SHARE, keep=1)

    train: list[_Picture] = []
    held: list[_Picture] = []
    for picture in pictures:
        emoji = picture.emoji
        kind = "skin_tone" if (emoji.name, emoji.tone) in new_tone else ""
        if not emoji.toned and (emoji.name, picture.style) in new_style:
            kind = "style"
        if kind:
            held.append(_Picture(emoji, picture.style, picture.pixels, kind))
        else:
            train.append(picture)
    seen = {picture.pixels.tobytes() for picture in train}
    test = [picture for picture in held if picture.pixels.tobytes() not in seen]
    return train, test, len(held) - len(test)


def _row(picture: _Picture) -> dict[str, str]:
    emoji = picture.emoji
    row = {
        "file_name": picture.file_name,
        "text": picture.caption,
        "name": emoji.name,
        "skin_tone": emoji.tone,
        "style": picture.style,
        "category": emoji.category,
        "subcategory": emoji.subcategory,
        "unified": emoji.unified,
    }
    return {**row, "held_out": picture.held_out} if picture.held_out else row


def _credits(styles: Sequence[str]) -> str:
    lines = ["The pictures, laid on white and brought to one size, are from:", ""]
    lines += [f"{s}: {STYLES[s].credit} (npm: {STYLES[s].package.spec})" for s in styles]
    lines += [
        "",
        "The names are from emoji-data, (c) Cal Henderson, https://github.com/iamcal/emoji-data; "
        "MIT. They were made readable by diffjax.",
    ]
    return "\n".join(lines) + "\n"


def _write(
    out: Path, splits: dict[str, list[_Picture]], identity: dict[str, Any], summary: str
) -> None:
    with made_folder.made_whole(out, identity, summary=summary) as aside:
        for split, pictures in splits.items():
            for style in identity["sources"]:
                (aside / split / style).mkdir(parents=True)
            for picture in pictures:
                Image.fromarray(picture.pixels).save(aside / split / picture.file_name)
            rows = "".join(json.dumps(_row(picture)) + "\n" for picture in pictures)
            (aside / split / "metadata.jsonl").write_text(rows, encoding="utf-8")
        (aside / CREDITS_FILE).write_text(_credits(list(identity["sources"])), encoding="utf-8")
