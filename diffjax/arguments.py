"""Arguments of public functions outside the core: each is returned in its one form, or refused.

    count = whole("count", count, least=1)      # an int: NumPy's integers are as good, True is not

What is something else raises `UserError` in one line: the argument's name, its value and what was
expected. The core's functions have `checks.checked` for that, which needs JAX.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.errors import UserError

SHOWN = 80  # letters of a value in a message


def shown(value: Any) -> str:
    """A value in a message: an array's type and shape, or a short repr.

    >>> shown(3.5), shown(np.zeros((2, 3)))
    ('3.5', 'an array of float64 (2, 3)')
    """
    if hasattr(value, "dtype") and getattr(value, "shape", None):
        return f"an array of {value.dtype} {tuple(value.shape)}"
    text = repr(value)
    if len(text) > SHOWN or not text.isprintable():
        return f"a {type(value).__name__}"
    return text


def _scalar(value: Any) -> Any:
    """A NumPy or JAX scalar as Python's number, anything else unchanged."""
    if hasattr(value, "dtype") and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def is_whole(value: Any) -> bool:
    """Whether it is an integer, of Python or NumPy; True is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)


def whole(name: str, value: Any, *, least: int = 0, most: int | None = None) -> int:
    """A whole number in [least, most].

    Raises:
      UserError: something else.
    """
    found = _scalar(value)
    if is_whole(found) and least <= found and (most is None or found <= most):
        return int(found)
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise UserError(f"{name} is {shown(value)}: expected a whole number {limits}")


def number(name: str, value: Any, *, above: float = -math.inf) -> float:
    """A finite number above a bound.

    Raises:
      UserError: something else.
    """
    found = _scalar(value)
    real = isinstance(found, numbers.Real) and not isinstance(found, bool)
    if real and math.isfinite(found) and found > above:
        return float(found)
    limit = "" if above == -math.inf else f" above {above:g}"
    raise UserError(f"{name} is {shown(value)}: expected a finite number{limit}")


def text(name: str, value: Any) -> str:
    """A string.

    Raises:
      UserError: something else.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} is {shown(value)}: expected a string")
    return value


def texts(name: str, values: Any) -> tuple[str, ...]:
    """Strings; a single one is refused, since its letters would be taken for texts.

    Raises:
      UserError: something else.
    """
    if isinstance(values, str):
        raise UserError(f"{name} is the text {shown(values)}: put it in a list")
    found = _listed(values)
    if found is None or not all(isinstance(value, str) for value in found):
        raise UserError(f"{name} is {shown(values)}: expected a list of texts")
    return tuple(map(str, found))


def wholes(name: str, values: Any) -> tuple[int, ...]:
    """Whole numbers, of a list, a range or a one-dimensional array.

    Raises:
      UserError: something else.
    """
    found = _listed(values)
    if found is None or not all(is_whole(_scalar(value)) for value in found):
        raise UserError(f"{name} is {shown(values)}: expected a list of whole numbers")
    return tuple(int(_scalar(value)) for value in found)


def _listed(values: Any) -> Sequence[Any] | None:
    """The values of a list, a tuple, a range or a 1-D array; None for anything else."""
    if hasattr(values, "dtype"):
        return np.asarray(values).tolist() if getattr(values, "ndim", 0) == 1 else None
    if isinstance(values, str | bytes | Mapping | Set) or not hasattr(values, "__len__"):
        return None
    return list(values) if hasattr(values, "__iter__") else None


def path(name: str, value: Any) -> Path:
    """A path, of a string or a `Path`.

    Raises:
      UserError: something else.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise UserError(f"{name} is {shown(value)}: expected a path, a string or a pathlib.Path")
    return Path(value)


def function(name: str, value: Any) -> Any:
    """What can be called.

    Raises:
      UserError: something else.
    """
    if not callable(value):
        raise UserError(f"{name} is {shown(value)}: expected a function")
    return value


def is_floating(dtype: np.dtype) -> bool:
    """Whether it is a floating-point type, bfloat16 and float8 among them."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def array(
    name: str, value: Any, *, expected: str = "an array of numbers", finite: bool = False
) -> np.ndarray:
    """An array of real numbers or of True and False, from anything that NumPy takes for one.

    Args:
      name: the argument's.
      value: an array, a number or nested lists of one shape.
      expected: what is expected, for the message.
      finite: whether NaN and infinities are refused.

    Raises:
      UserError: None, texts, objects, complex numbers, or rows of several lengths.
    """
    try:
        found = np.asarray(value)
    except (ValueError, TypeError) as error:  # rows of several lengths, for one
        raise UserError(
            f"{name} is {shown(value)}, whose parts make no array: expected {expected}"
        ) from error
    if found.dtype.kind not in "biuf" and not is_floating(found.dtype):
        raise UserError(f"{name} is {shown(value)}: expected {expected}")
    if finite and found.dtype.kind not in "biu" and not np.isfinite(found).all():
        raise UserError(f"{name} has values that are not finite: expected {expected}")
    return found
