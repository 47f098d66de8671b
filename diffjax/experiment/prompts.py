"""Prompts in a config string or a file."""

import unicodedata

from diffjax.errors import UserError
from diffjax.files import expanded

FILE = "file:"


def read(text: str, *, key: str) -> tuple[str, ...]:
    """The prompts of a config key: one, several separated by '|', or a file with one per line.

    Raises:
      UserError: an empty prompt among several, a control character, or a file that is empty or
        can't be read.

    >>> read("a red apple | a blue heart", key="sample.prompt")
    ('a red apple', 'a blue heart')
    """
    if not text.strip():
        return ()
    if not text.startswith(FILE):
        found = tuple(part.strip() for part in text.split("|"))
        if not all(found):
            raise UserError(f"config.{key} = {text!r}: one of the prompts is empty: remove a '|'")
        return _checked(found, key=key)
    path = expanded(text.removeprefix(FILE))
    if path.exists() and not path.is_file():
        raise UserError(f"config.{key} = {text!r} can't be read: it is not a regular file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"config.{key} = {text!r} can't be read: {reason}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UserError(f"config.{key} = {text!r} has no line with a prompt")
    return _checked(found, key=key)


def _checked(found: tuple[str, ...], *, key: str) -> tuple[str, ...]:
    """Returns the prompts.

    Raises:
      UserError: a control character, or a lone surrogate, which is how Python decodes bytes of the
        command line that are not UTF-8.
    """
    for prompt in found:
        strange = [c for c in prompt if unicodedata.category(c) in ("Cc", "Cs") and c != "\t"]
        if strange:
            raise UserError(
                f"config.{key} = {prompt!r} has the character {strange[0]!r}: expected text in "
                "UTF-8, without control characters"
            )
    return found
