"""How a wrong argument has to end: one line, in diffjax's own words, that holds some given ones."""

import inspect
from pathlib import Path

import pytest

from diffjax.errors import UserError

PACKAGE = Path(inspect.getfile(UserError)).parent


def refuses(call, *words, errors=UserError):
    """Asserts that a call raises one of `errors`, in a line of diffjax's own with all the words."""
    with pytest.raises(errors) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 500, message
    # What XLA, Flax or NumPy raise deeper down may be of the same type.
    assert PACKAGE in Path(caught.traceback[-1].path).parents, message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
