"""The settings of a view as the address has them, checked: each wrong one is one clear line.

Settings of sampling are names of diffjax's own tables, with options. A path to a user's object,
which a config may have, is refused: no request makes the server import anything. So is guidance by
another run, whose files are not below the given folders.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from diffjax import arguments
from diffjax.errors import UserError
from diffjax.experiment.own_settings import names
from diffjax.experiment.spec import parse_spec
from diffjax.inference.inputs import MAX_SEED

MOST_STEPS = 1000
LONGEST_TEXT = 2000
REFUSED = {"guidance": ("autoguidance",)}


class Values:
    """A view's settings by name; "" and None are those that are left open."""

    def __init__(self, given: object) -> None:
        """Takes what a request has.

        Raises:
          UserError: it is no object of numbers, texts, lists and booleans.
        """
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise UserError(f"the request is {arguments.shown(given)}: expected settings by name")
        self._given = dict(given)

    def known(self, expected: Iterable[str]) -> "Values":
        """These values.

        Raises:
          UserError: one has another name than the expected ones.
        """
        expected = tuple(expected)
        if unknown := sorted(set(self._given) - set(expected)):
            raise UserError(
                f"{unknown[0][:60]!r} is no setting of this panel: expected {', '.join(expected)}"
            )
        return self

    def but(self, changed: Mapping[str, Any]) -> "Values":
        """These values with some changed, and without those that tell several pictures apart."""
        kept = {name: v for name, v in self._given.items() if name not in ("by", "items")}
        return Values({**kept, **changed})

    def names(self) -> list[str]:
        """The names of the values."""
        return list(self._given)

    def has(self, name: str) -> bool:
        """Whether a value was given."""
        return self._given.get(name) not in (None, "")

    def text(self, name: str, default: str = "") -> str:
        """A text of bounded length."""
        if not self.has(name):
            return default
        value = arguments.text(name, self._given[name])
        if len(value) > LONGEST_TEXT:
            raise UserError(f"{name} has {len(value)} letters: expected at most {LONGEST_TEXT}")
        return value

    def whole(self, name: str, default: int, *, least: int = 0, most: int) -> int:
        """A whole number, also as a text."""
        if not self.has(name):
            return default
        return arguments.whole(name, _as_number(self._given[name]), least=least, most=most)

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        """A number in [least, most], also as a text."""
        if not self.has(name):
            return default
        value = arguments.number(name, _as_number(self._given[name]))
        if not least <= value <= most:
            raise UserError(f"{name} is {value:g}: expected a number from {least:g} to {most:g}")
        return value

    def wholes(self, name: str, default: tuple[int, ...], *, most: int) -> tuple[int, ...]:
        """Whole numbers of at least 0: a list, or a text such as "3,8"."""
        values = self.items(name)
        if not values:
            return default
        return tuple(arguments.whole(name, _as_number(v), least=0, most=most) for v in values)

    def items(self, name: str) -> list[Any]:
        """The items of a list, or of a text with commas between brackets' outsides."""
        given = self._given.get(name)
        if isinstance(given, str):
            return [part.strip() for part in _split(given) if part.strip()]
        if isinstance(given, list):
            return given
        if given is None:
            return []
        return [given]

    def one_of(self, name: str, choices: Iterable[str], default: str) -> str:
        """One of several texts."""
        value, choices = self.text(name, default), tuple(choices)
        if value not in choices:
            raise UserError(f"{name} is {value[:60]!r}: expected one of {', '.join(choices)}")
        return value

    def raw(self, name: str) -> Any:
        """The value as it was given."""
        return self._given.get(name)

    def seed(self, name: str = "seed") -> int:
        """A seed, 0 if it is left open."""
        return self.whole(name, 0, most=MAX_SEED - 1)


SETTINGS = ("sampler", "grid", "steps", "guidance", "scale", "threshold", "negative_prompt")


def how_of(values: Values) -> dict[str, Any]:
    """The settings of `Pipeline.sample` that a view changes; what is left open is the run's own.

    Raises:
      UserError: an unknown name, an option's wrong form, or a number out of range.
    """
    how: dict[str, Any] = {}
    for key in ("sampler", "grid", "threshold"):
        if values.has(key):
            how[key] = checked_spec(key, values.text(key))
    if values.has("steps"):
        how["steps"] = values.whole("steps", 1, least=1, most=MOST_STEPS)
    if values.has("guidance"):
        how["guidance"] = guidance_of(values)
    if values.has("negative_prompt"):
        how["negative_prompt"] = values.text("negative_prompt")
    return how


def guidance_of(values: Values) -> str:
    """The text of the guidance, with the scale in its brackets where it has none of its own."""
    text = checked_spec("guidance", values.text("guidance"))
    if "(" in text or text == "none":
        return text
    scale = values.number("scale", 2.0, least=-100.0, most=100.0)
    return f"{text}(scale={scale})"


def checked_spec(key: str, text: str) -> str:
    """A name of one of diffjax's tables, with options.

    Raises:
      UserError: another name, a path to an object, or brackets that can't be read.
    """
    allowed = [name for name in names()[key] if name not in REFUSED.get(key, ())]
    spec = parse_spec(text, key=f"sample.{key}")
    if spec.module or spec.path not in allowed:
        raise UserError(f"{key} is {text[:60]!r}: expected one of {', '.join(allowed)}")
    return text


def _as_number(value: Any) -> Any:
    """A text that is a number as that number; anything else unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def _split(text: str) -> list[str]:
    """The parts between commas that are outside brackets.

    >>> _split("ddim(eta=0.5, clip=1), heun")
    ['ddim(eta=0.5, clip=1)', ' heun']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
