"""A config's string as a function: a name, with arguments where the defaults do not do.

"cosine", "linear_beta(T=500)", "min_snr(gamma=3)". Only literals are read; nothing is evaluated.
What can be chosen stands in tables, name -> maker, in `build` and `build_sampling`.
"""

import ast
import inspect
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from diffjax.errors import UserError

# What an argument must be, by the type of its default.
_KINDS: Mapping[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    tuple: ((tuple, list), "values in parentheses"),
}

# What a function gets from elsewhere than its config string.
_GIVEN = ("grid", "key", "cond", "keep_trajectory", "schedule", "null")


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """A maker that binds those keywords of a function that a config may set."""
    parameters = inspect.signature(function).parameters.values()
    allowed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _GIVEN]

    def make(**options: Any) -> Callable[..., Any]:
        for name in options:
            if name not in allowed:
                has = ", ".join(allowed) or "no arguments"
                raise TypeError(f"{function.__name__} takes {has}, not {name}")
        return partial(function, **options)

    keywords = [p for p in parameters if p.name in allowed]
    make.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    return make


def read_choice(text: str, *, key: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of "name" or "name(argument=literal, ...)".

    Raises:
      UserError: the text is neither.

    >>> read_choice("min_snr(gamma=3)", key="diffusion.weighting")
    ('min_snr', {'gamma': 3})
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, {}
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise ValueError("not a call with named arguments")
        arguments = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
        if len(arguments) != len(call.keywords):
            raise ValueError("unpacking")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise UserError(
            f"config.{key} = {text!r}: expected 'name' or 'name(argument=number)'"
        ) from None
    return call.func.id, arguments


def choose(text: str, choices: Mapping[str, Callable[..., Any]], *, key: str) -> Any:
    """The object that a config's string names.

    Args:
      text: "name" or "name(argument=literal, ...)".
      choices: name -> maker.
      key: the config's key, for the error.

    Raises:
      UserError: an unknown name, or arguments that the choice does not take.

    >>> choose("twice(x=3)", {"twice": lambda x: 2 * x}, key="some.key")
    6
    """
    name, arguments = read_choice(text, key=key)
    if name not in choices:
        raise UserError(f"config.{key} = {text!r}: expected one of {', '.join(choices)}")
    try:
        _check_kinds(choices[name], arguments)
        return choices[name](**arguments)
    except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
        raise UserError(f"config.{key} = {text!r}: {_plain(error)}") from None


def _check_kinds(make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument that is not of its default's kind, or not finite."""
    parameters = inspect.signature(make).parameters
    for name in arguments.keys() & parameters.keys():
        value, parameter = arguments[name], parameters[name]
        default = parameter.default
        kinds, expected = _KINDS.get(type(default), ((), ""))
        if default is None and parameter.annotation in (float | None, "float | None"):
            kinds, expected = (int, float, type(None)), "a number"
        if not kinds:
            continue
        # Infinity may be said where it is the default: no limit.
        finite = not isinstance(value, float) or math.isfinite(value) or default == math.inf
        if type(value) not in kinds or not finite:
            such = "" if default is None else f" such as {default!r}"
            raise ValueError(f"{name} must be {expected}{such}, not {value!r}")


def _plain(error: Exception) -> str:
    """Python's words for a wrong call without the names of functions that a config can't see."""
    return re.sub(r"^[\w.<>]+\(\) ", "", str(error))
