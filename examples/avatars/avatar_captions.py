"""Captions that name some or all of an avatar's attributes, in varied wording and order.

    a person with wild blue curls, big eyes and brown skin, wearing a green t-shirt and sunglasses,
    on a pink background

What a caption does not name is free. Half of the captions name all, the others any number.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

from avatar_names import CLOTHES, HAIR, HAS, PARTS, WEARS

_SUBJECTS = ("a person", "someone", "pixel art of a person", "a portrait of a person")
_BACKGROUNDS = ("on a {} background", "against a {} background", "in front of a {} background")
_WHOLE_SHARE = 0.5


def named_attributes(chance: random.Random) -> tuple[str, ...]:
    """Draws which attributes a caption names, in the order of the table."""
    count = len(PARTS) if chance.random() < _WHOLE_SHARE else chance.randrange(1, len(PARTS))
    chosen = chance.sample(list(PARTS), count)
    return tuple(attribute for attribute in PARTS if attribute in chosen)


def caption(avatar: Mapping[str, str], named: Collection[str], chance: random.Random) -> str:
    """Puts attributes of an avatar in words.

    Args:
      avatar: {attribute: value}.
      named: the attributes to name, at least one.
      chance: draws the wording and the order.

    Returns:
      A sentence, or a list of phrases: lower-case ASCII.
    """
    shown = {attribute: avatar[attribute] for attribute in PARTS if attribute in named}
    has = [_coloured(shown, "hair", HAIR, "{} hair", chance)]
    has += [chance.choice(words[shown[key]]) for key, words in HAS.items() if key in shown]
    wears = [_coloured(shown, "clothes", CLOTHES, "{} clothes", chance)]
    wears += [chance.choice(words[shown[key]]) for key, words in WEARS.items() if key in shown]
    has, wears = [list(filter(None, phrases)) for phrases in (has, wears)]
    chance.shuffle(has)
    chance.shuffle(wears)
    background = shown.get("background", "")
    if chance.random() < 0.5:
        phrases = [*has, *wears, *([f"a {background} background"] if background else [])]
        chance.shuffle(phrases)
        return ", ".join(phrases)
    parts = [f"with {_joined(has)}"] if has else []
    parts += [f"wearing {_joined(wears)}"] if wears else []
    chance.shuffle(parts)
    sentence = " ".join([chance.choice(_SUBJECTS), ", ".join(parts)]).strip()
    if not background:
        return sentence
    where = chance.choice(_BACKGROUNDS).format(background)
    return chance.choice((f"{sentence}, {where}", f"{where}, {sentence}"))


def _coloured(
    shown: Mapping[str, str],
    thing: str,
    words: Mapping[str, Sequence[str]],
    colour_alone: str,
    chance: random.Random,
) -> str:
    """A thing in its colour, either of them alone, or "" where neither is named."""
    colour = shown.get(f"{thing}_colour", "")
    if thing not in shown:
        return colour_alone.format(colour) if colour else ""
    # The first wording reads well without a colour, too.
    phrase = chance.choice(words[shown[thing]]) if colour else words[shown[thing]][0]
    return " ".join(phrase.format(colour).split())


def _joined(phrases: Sequence[str]) -> str:
    """
    >>> _joined(["a smile"]), _joined(["a smile", "big eyes", "dark skin"])
    ('a smile', 'a smile, big eyes and dark skin')
    """
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
