"""The house's English: words that a reader of an ML paper would not expect."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each with what to write instead.
WORDS = {
    r"\btold\b": "reported, given, passed, described",
    r"\blies\b(?! between)": "is",
    r"\bstands\b(?! for)": "is",
    r"\bbeside\b": "next to, besides, with",
    r"\banew\b": "again",
    r",? say\b(?=[,.:;)\n]|$)": "for example, e.g.",
    r"\bwhoever\b": "a caller, users",
    r"\bcan't be\b(?! \w+(ed|en|wn|t|ad)\b)": "is invalid",
}
# f-strings have tokens of their own since Python 3.12.
PROSE_TOKENS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
# Where a word is right: a key that version 0.1 wrote.
RIGHT = {("diffjax/checkpoints/workdir.py", "'told'")}
CODE = sorted(p for d in ("diffjax", "experiments", "examples") for p in (ROOT / d).rglob("*.py"))
BUILT = ("api", "project", "reference")  # pages that the manual's build writes
PROSE = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name not in BUILT),
    *sorted((ROOT / "examples").rglob("*.md")),
]


def found(text, *, what):
    """The words of a text that are on the list, with what to write instead."""
    return [
        f"{what}: {match[0].strip(' ,')!r}: write {instead}"
        for pattern, instead in WORDS.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]


def spoken(path):
    """(line, text) of each comment and string of a module, and of its names."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in PROSE_TOKENS:
                yield token.start[0], token.string
            elif token.type == tokenize.NAME:
                yield token.start[0], token.string.replace("_", " ")


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_speaks_plainly(path):
    name = str(path.relative_to(ROOT))
    hits = (hit for line, text in spoken(path) for hit in found(text, what=f"line {line}"))
    bad = [hit for hit in hits if (name, hit.split(": ")[1]) not in RIGHT]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_speak_plainly(path):
    bad = found(path.read_text(encoding="utf-8"), what=path.name)
    assert not bad, "\n".join(bad)


def test_the_list_finds_what_it_names():
    with io.StringIO("a damaged one is told") as text:
        assert found(text.read(), what="x") == [
            "x: 'told': write reported, given, passed, described"
        ]
    assert not found("a checkpoint can't be read", what="x")
