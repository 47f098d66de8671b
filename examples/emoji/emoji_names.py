"""What to call an emoji in a caption, from Unicode's name for it.

Unicode's names cannot be changed, and many were given to black and white type long before there
was colour: BLACK HEART SUIT is a red heart, WHITE HEAVY CHECK MARK a white tick on green. In order:

 1. `_NAMES` says outright what the picture shows, where the name describes type, a gesture's
    history or a word no longer used. Most of it is Unicode's own newer name (CLDR).
 2. Flags, families, couples and hair are put as one would say them: "flag of france",
    "family of man, woman and boy", "man with red hair".
 3. BLACK, WHITE and HEAVY go where the short name does not have them (and the emoji is no
    person), for there they mean filled, outlined and bold. A BLACK CAT, black_cat, stays black.
 4. SIGN and SYMBOL at the end go where the picture is no sign: "waving hand", "new moon".
 5. All is in lower case and ASCII, and two emoji of one name get their short names instead.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

SKIN_TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}

_NAMES = {
    # People: gestures
    "FISTED HAND SIGN": "oncoming fist",
    "HAND WITH INDEX AND MIDDLE FINGERS CROSSED": "crossed fingers",
    "PERSON RAISING BOTH HANDS IN CELEBRATION": "raising hands",
    "PERSON WITH FOLDED HANDS": "folded hands",
    "RAISED HAND WITH PART BETWEEN MIDDLE AND RING FINGERS": "vulcan salute",
    "REVERSED HAND WITH MIDDLE FINGER EXTENDED": "middle finger",
    "WHITE DOWN POINTING BACKHAND INDEX": "backhand index pointing down",
    "WHITE LEFT POINTING BACKHAND INDEX": "backhand index pointing left",
    "WHITE RIGHT POINTING BACKHAND INDEX": "backhand index pointing right",
    "WHITE UP POINTING BACKHAND INDEX": "backhand index pointing up",
    "WHITE UP POINTING INDEX": "index pointing up",
    # People: those with a man and a woman variant are persons
    "ADULT": "person",
    "BATH": "person taking bath",
    "BICYCLIST": "person biking",
    "BREAST-FEEDING": "woman breast-feeding",
    "BRIDE WITH VEIL": "person with veil",
    "DANCER": "woman dancing",
    "FACE MASSAGE": "person getting massage",
    "FACE PALM": "person facepalming",
    "FACE WITH NO GOOD GESTURE": "person gesturing no",
    "FACE WITH OK GESTURE": "person gesturing ok",
    "FATHER CHRISTMAS": "santa claus",
    "GUARDSMAN": "guard",
    "HAIRCUT": "person getting haircut",
    "HANDBALL": "person playing handball",
    "HAPPY PERSON RAISING ONE HAND": "person raising hand",
    "INFORMATION DESK PERSON": "person tipping hand",
    "JUGGLING": "person juggling",
    "KISS": "people kissing",
    "MAN WITH GUA PI MAO": "person with skullcap",
    "MAN WITH TURBAN": "person wearing turban",
    "MOTHER CHRISTMAS": "mrs. claus",
    "MOUNTAIN BICYCLIST": "person mountain biking",
    "OLDER ADULT": "older person",
    "PEDESTRIAN": "person walking",
    "PERSON BOWING DEEPLY": "person bowing",
    "PERSON DOING CARTWHEEL": "person cartwheeling",
    "PERSON WITH POUTING FACE": "person pouting",
    "ROWBOAT": "person rowing boat",
    "RUNNER": "person running",
    "SHRUG": "person shrugging",
    "SLEEPING ACCOMMODATION": "person in bed",
    "SURFER": "person surfing",
    "SWIMMER": "person swimming",
    "WATER POLO": "person playing water polo",
    "WOMAN WITH BUNNY EARS": "people with bunny ears",
    "WRESTLERS": "people wrestling",
    # Things whose name is old, foreign or of another thing than is drawn
    "AUBERGINE": "eggplant",
    "BLACK SUN WITH RAYS": "sun",
    "COOKING": "fried egg",
    "DIRECT HIT": "bullseye",
    "EAR OF MAIZE": "ear of corn",
    "ELECTRIC TORCH": "flashlight",
    "HOCHO": "kitchen knife",
    "LADY BEETLE": "ladybug",
    "PISTOL": "water pistol",
    "PLAYING CARD BLACK JOKER": "joker playing card",
    "POLICE CARS REVOLVING LIGHT": "police car light",
    "SILHOUETTE OF JAPAN": "map of japan",
    "SMOKING SYMBOL": "cigarette",
    "WATER WAVE": "ocean wave",
    "WHITE MEDIUM STAR": "star",
    # Hearts, cards and marks
    "ANGER SYMBOL": "anger symbol",
    "BLACK CLUB SUIT": "club suit",
    "BLACK DIAMOND SUIT": "diamond suit",
    "BLACK HEART SUIT": "heart suit",
    "BLACK SPADE SUIT": "spade suit",
    "HEAVY BLACK HEART": "red heart",
    "BLACK QUESTION MARK ORNAMENT": "red question mark",
    "HEAVY EXCLAMATION MARK SYMBOL": "red exclamation mark",
    "DASH SYMBOL": "dashing away",
    "HEAVY LARGE CIRCLE": "hollow red circle",
    "NEGATIVE SQUARED CROSS MARK": "cross mark button",
    "SLEEPING SYMBOL": "zzz",
    "WHITE EXCLAMATION MARK ORNAMENT": "grey exclamation mark",
    "WHITE HEAVY CHECK MARK": "check mark button",
    "WHITE QUESTION MARK ORNAMENT": "grey question mark",
    "AUTOMATED TELLER MACHINE": "atm sign",
    # Buttons
    "ANTICLOCKWISE DOWNWARDS AND UPWARDS OPEN CIRCLE ARROWS": "counterclockwise arrows button",
    "BACK WITH LEFTWARDS ARROW ABOVE": "back arrow",
    "BLACK DOWN-POINTING DOUBLE TRIANGLE": "fast down button",
    "BLACK LEFT-POINTING DOUBLE TRIANGLE": "fast reverse button",
    "BLACK LEFT-POINTING TRIANGLE": "reverse button",
    "BLACK RIGHT-POINTING DOUBLE TRIANGLE": "fast-forward button",
    "BLACK RIGHT-POINTING TRIANGLE": "play button",
    "BLACK UP-POINTING DOUBLE TRIANGLE": "fast up button",
    "CIRCLED IDEOGRAPH ACCEPT": "japanese acceptable button",
    "CIRCLED IDEOGRAPH ADVANTAGE": "japanese bargain button",
    "CIRCLED IDEOGRAPH CONGRATULATION": "japanese congratulations button",
    "CIRCLED IDEOGRAPH SECRET": "japanese secret button",
    "CIRCLED LATIN CAPITAL LETTER M": "circled letter m",
    "CLOCKWISE DOWNWARDS AND UPWARDS OPEN CIRCLE ARROWS": "clockwise vertical arrows",
    "CLOCKWISE RIGHTWARDS AND LEFTWARDS OPEN CIRCLE ARROWS": "repeat button",
    "CLOCKWISE RIGHTWARDS AND LEFTWARDS OPEN CIRCLE ARROWS WITH CIRCLED ONE OVERLAY": (
        "repeat single button"
    ),
    "DOWN-POINTING SMALL RED TRIANGLE": "downwards button",
    "END WITH LEFTWARDS ARROW ABOVE": "end arrow",
    "INFORMATION SOURCE": "information button",
    "INPUT SYMBOL FOR LATIN CAPITAL LETTERS": "input latin uppercase button",
    "INPUT SYMBOL FOR LATIN LETTERS": "input latin letters button",
    "INPUT SYMBOL FOR LATIN SMALL LETTERS": "input latin lowercase button",
    "INPUT SYMBOL FOR NUMBERS": "input numbers button",
    "INPUT SYMBOL FOR SYMBOLS": "input symbols button",
    "NEGATIVE SQUARED AB": "ab button",
    "NEGATIVE SQUARED LATIN CAPITAL LETTER A": "a button",
    "NEGATIVE SQUARED LATIN CAPITAL LETTER B": "b button",
    "NEGATIVE SQUARED LATIN CAPITAL LETTER O": "o button",
    "NEGATIVE SQUARED LATIN CAPITAL LETTER P": "p button",
    "ON WITH EXCLAMATION MARK WITH LEFT RIGHT ARROW ABOVE": "on arrow",
    "SOON WITH RIGHTWARDS ARROW ABOVE": "soon arrow",
    "SQUARED CJK UNIFIED IDEOGRAPH-5272": "japanese discount button",
    "SQUARED CJK UNIFIED IDEOGRAPH-5408": "japanese passing grade button",
    "SQUARED CJK UNIFIED IDEOGRAPH-55B6": "japanese open for business button",
    "SQUARED CJK UNIFIED IDEOGRAPH-6307": "japanese reserved button",
    "SQUARED CJK UNIFIED IDEOGRAPH-6708": "japanese monthly amount button",
    "SQUARED CJK UNIFIED IDEOGRAPH-6709": "japanese not free of charge button",
    "SQUARED CJK UNIFIED IDEOGRAPH-6E80": "japanese no vacancy button",
    "SQUARED CJK UNIFIED IDEOGRAPH-7121": "japanese free of charge button",
    "SQUARED CJK UNIFIED IDEOGRAPH-7533": "japanese application button",
    "SQUARED CJK UNIFIED IDEOGRAPH-7981": "japanese prohibited button",
    "SQUARED CJK UNIFIED IDEOGRAPH-7A7A": "japanese vacancy button",
    "SQUARED KATAKANA KOKO": "japanese here button",
    "SQUARED KATAKANA SA": "japanese service charge button",
    "SQUARED UP WITH EXCLAMATION MARK": "up button",
    "TOP WITH UPWARDS ARROW ABOVE": "top arrow",
    "TWISTED RIGHTWARDS ARROWS": "shuffle tracks button",
    "UP-POINTING SMALL RED TRIANGLE": "upwards button",
    "HASH KEY": "keycap hash",
    "KEYCAP: *": "keycap star",
    "KEYCAP TEN": "keycap 10",
}

# Subcategories in which a picture is a sign or symbol of something, and says so.
_SIGNS = (
    "alphanum",
    "currency",
    "gender",
    "math",
    "money",
    "other-symbol",
    "religion",
    "transport-ground",
    "transport-sign",
    "warning",
)

_SWATCH = "skin tone swatch"

_WORDS = {
    "mans": "man's",
    "womans": "woman's",
    "mens": "men's",
    "womens": "women's",
    "oclock": "o'clock",
}


def names(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Returns what to call each entry of an emoji.json: its `name` made readable.

    They are all different, but for the patches of the skin tones themselves, which share one.

    >>> flag = {"name": "Côte d’Ivoire Flag", "short_name": "flag-ci", "category": "Flags"}
    >>> hand = {"name": "WAVING HAND SIGN", "short_name": "wave", "category": "People & Body"}
    >>> names([{"subcategory": "country-flag", **flag}, {"subcategory": "hand", **hand}])
    ["flag of cote d'ivoire", 'waving hand']
    """
    found = [_name(entry) for entry in entries]
    counts = Counter(found)
    return [
        name if counts[name] == 1 or name == _SWATCH else re.sub("[_-]", " ", entry["short_name"])
        for name, entry in zip(found, entries, strict=True)
    ]


def _name(entry: dict[str, Any]) -> str:
    name, subcategory = entry["name"], entry["subcategory"]
    if name in _NAMES:
        return _NAMES[name]
    if name.startswith("EMOJI MODIFIER FITZPATRICK"):
        return _SWATCH
    words = _plain(name)
    if subcategory.endswith("-flag"):
        return f"flag of {words.removesuffix(' flag')}"
    if subcategory == "zodiac":
        return f"{words} zodiac sign"
    if match := re.fullmatch("squared (.+)", words):
        return f"{match[1]} button"
    if match := re.fullmatch("(.+): (.+)", words):
        return _with_parts(match[1], match[2].split(", "))
    if entry["category"] != "People & Body":
        for typographic in ("black", "white", "heavy"):
            if typographic not in entry["short_name"]:
                words = re.sub(rf"\b{typographic} ", "", words)
    if subcategory not in _SIGNS:
        words = re.sub(" (sign|symbol)$", "", words)
    return words


def _plain(name: str) -> str:
    """Returns a name in lower case and ASCII, with "and" for "&" and its apostrophes."""
    decomposed = unicodedata.normalize("NFKD", name.replace("’", "'").replace(" & ", " and "))
    words = decomposed.encode("ascii", "ignore").decode().lower()
    words = re.sub(r"^congo - (.+) flag$", r"congo (\1) flag", words)
    words = re.sub(r"^clock face (?=\w+[- ])", "clock face at ", words)
    return " ".join(_WORDS.get(word, word) for word in words.split())


def _with_parts(what: str, parts: list[str]) -> str:
    """Returns "KISS: WOMAN, MAN" and its like as one would say them."""
    together = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    if what == "kiss":
        return f"{together} kissing"
    if what == "couple with heart":
        return f"{together} with heart"
    if what == "family":
        return f"family of {together}"
    return f"bald {what}" if parts == ["bald"] else f"{what} with {together}"
