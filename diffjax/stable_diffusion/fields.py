"""The fields of a config.json that diffusers wrote, each read, required or refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from diffjax.errors import UserError
from diffjax.stable_diffusion import sources


class Fields:
    """A config that knows which of its fields were read.

    A field that is absent has diffusers' default. `finish` refuses what nobody asked for, so that
    no field of a model is passed over.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file; see `sources.read`.

        Raises:
          UserError: no such file, or one that is no JSON object.
        """
        self.path = path
        self.values = sources.read(path)
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def value(self, name: str, default: Any = None) -> Any:
        """A field as it is."""
        self._read.add(name)
        return self.values.get(name, default)

    def whole(self, name: str, default: int, *, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.value(name, default)
        if type(value) is not int or value < least:
            self.refuse(name, f"a whole number of at least {least}")
        return value

    def number(self, name: str, default: float, *, above: float = -1e38) -> float:
        """A number above a bound."""
        value = self.value(name, default)
        if type(value) not in (int, float) or not above < value < 1e38:
            self.refuse(name, f"a number above {above:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or False; null is False."""
        value = self.value(name, default)
        if value not in (True, False, None):
            self.refuse(name, "true or false")
        return bool(value)

    def one_of(self, name: str, choices: Sequence[str], default: str) -> str:
        """One of several texts."""
        value = self.value(name, default)
        if value not in choices:
            self.refuse(name, " or ".join(choices))
        return value

    def wholes(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """Whole numbers of at least 1, one or more."""
        value = self.value(name, list(default))
        if not isinstance(value, list | tuple) or not value or not all(map(_positive, value)):
            self.refuse(name, "whole numbers of at least 1")
        return tuple(value)

    def each(self, name: str, default: int, levels: int) -> tuple[int, ...]:
        """A whole number for each level, from one for all or one a level."""
        value = self.value(name, default)
        numbers = [value] * levels if type(value) is int else value
        if not isinstance(numbers, list | tuple) or not all(map(_positive, numbers)):
            self.refuse(name, "a whole number of at least 1, or one a level")
        if len(numbers) != levels:
            self.refuse(name, f"{levels} numbers, one for each of block_out_channels")
        return tuple(numbers)

    def texts(self, name: str, default: Sequence[str]) -> tuple[str, ...]:
        """A list of texts."""
        value = self.value(name, list(default))
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            self.refuse(name, "a list of strings")
        return tuple(value)

    def only(self, name: str, *allowed: Any) -> None:
        """Checks that a field is absent or has one of these values."""
        value = self.value(name, allowed[0])
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool)
                   for one in allowed):  # fmt: skip
            self.refuse(name, " or ".join(map(_json, allowed)))

    def skip(self, *names: str) -> None:
        """Marks fields as read that change nothing here."""
        self._read.update(names)

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raises UserError for a field."""
        raise UserError(
            f"found {name}={self.values.get(name)!r} in {self.path}; expected {expected}; other "
            "networks are not supported, choose another model"
        )

    def finish(self) -> None:
        """Checks that there are no other fields but those of null, and names that begin with "_".

        Raises:
          UserError: there are.
        """
        for name, value in self.values.items():
            if name not in self._read and not name.startswith("_") and value is not None:
                raise UserError(
                    f"found {name}={value!r} in {self.path}; expected no such field; it is not "
                    "supported, choose another model"
                )


def _positive(value: Any) -> bool:
    return type(value) is int and value >= 1


def _json(value: Any) -> str:
    names = {"None": "null", "True": "true", "False": "false"}
    return names.get(str(value), repr(value))
