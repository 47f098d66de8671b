"""Texts in pictures: a font that has their letters, and a width that they keep to.

Pillow's own font has Latin letters, matplotlib's DejaVu Sans many other alphabets. A letter that
neither has, as of Chinese, is written as its code point, U+732B: an empty box would tell no two
names apart. A byte that is no text, of a file name in another encoding, is written as in "\\xe9".
"""

from __future__ import annotations

import functools

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

ELLIPSIS = "..."
_MOST = 500  # letters of a text whose width is worth measuring
_ABSENT = "\U0010ffff"  # a code point that is never assigned


def drawable(text: str, *, wide: bool) -> str:
    """A text on one line, whose missing letters are written as code points.

    Args:
      text: any text.
      wide: whether it is drawn in DejaVu Sans, or in Pillow's own font.
    """
    return "".join(_shown(letter, wide) for letter in " ".join(text.split()))


def _shown(letter: str, wide: bool) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that it can't decode
        return f"\\x{code - 0xDC00:02x}"
    return letter if letter == " " or _has(letter, wide=wide) else f"U+{code:04X}"


class Lettering:
    """Texts that are drawn in one font, in one size."""

    def __init__(self, texts: list[str] | tuple[str, ...], size: int) -> None:
        """Chooses the font: Pillow's if it has all letters, else DejaVu Sans."""
        letters = set("".join(texts))
        wide = None
        if not all(_has(letter, wide=False) for letter in letters):
            wide = _dejavu(size)
        self.font: Font = wide or ImageFont.load_default(size)
        self.texts = [drawable(text, wide=wide is not None) for text in texts]

    def width(self, text: str) -> float:
        """The width of a text in pixels."""
        return self.font.getlength(text)

    def cut(self, text: str, width: float) -> str:
        """The text, without its middle if it is wider than `width` pixels."""
        if len(text) < _MOST and self.width(text) <= width:
            return text
        low, high = 1, min(len(text) - 1, _MOST)  # letters that fit, and that may not
        while low < high:
            kept = (low + high + 1) // 2
            fits = self.width(_middle_out(text, kept)) <= width
            low, high = (kept, high) if fits else (low, kept - 1)
        return _middle_out(text, low)


def _middle_out(text: str, kept: int) -> str:
    """The first and last letters of a text, `kept` in all, around an ellipsis."""
    tail = kept // 2
    return text[: kept - tail] + ELLIPSIS + (text[len(text) - tail :] if tail else "")


def in_matplotlib(text: str) -> str:
    """A text for matplotlib, which draws in DejaVu Sans, reads $...$ as formulas, and gives no
    entry of a legend to a name with a leading underscore."""
    shown = drawable(text, wide=True).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


@functools.cache
def _dejavu(size: int) -> ImageFont.FreeTypeFont | None:
    try:
        from matplotlib import get_data_path

        return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    except (ImportError, OSError):
        return None


@functools.cache
def _has(letter: str, *, wide: bool) -> bool:
    """Whether a font has a letter: one that it lacks looks like one that does not exist."""
    if 0xD800 <= ord(letter) <= 0xDFFF:
        return False
    font = _dejavu(24) if wide else ImageFont.load_default(24)
    if font is None:
        return ord(letter) < 128
    return letter.isspace() or _picture(font, letter) != _picture(font, _ABSENT)


def _picture(font: Font, letter: str) -> bytes:
    sheet = Image.new("L", (64, 64))
    ImageDraw.Draw(sheet).text((8, 8), letter, font=font, fill=255)
    return sheet.tobytes()
