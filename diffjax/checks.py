"""Arguments of the core's functions, held against their signatures when they are called.

    @checked
    def q_sample(schedule: Schedule, x_0: Data, *, t: Times, eps: Data) -> Data: ...

An annotation says what an argument is: a number, a schedule, a floating-point array with axes
(batch, *shape). What is something else raises TypeError, and sizes that do not fit together or
times out of the schedule's range raise ValueError, in one line that names the argument. All of it
happens in Python: a compiled function has been checked when it was traced, and pays nothing. Values
that are traced are not looked at, only their types and shapes.

Times out of [0, T] that are traced are cut to the table's ends by a discrete schedule, and give
what a continuous one's formula gives, which may be NaN.
"""

import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np

from diffjax.types import ArrayLike, Numbers, TimePerExample, Times

Function = TypeVar("Function", bound=Callable[..., Any])


class _Rule(NamedTuple):
    """What an argument must be."""

    expected: str
    holds: Callable[[Any], bool]


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def _is_number(value: Any) -> bool:
    if isinstance(value, jax.Array | np.ndarray):
        return value.ndim == 0 and _has_kind(value, jnp.number)
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)


def _has_kind(value: Any, kind: Any) -> bool:
    return bool(jax.dtypes.issubdtype(value.dtype, kind))


def _is_numbers(value: Any) -> bool:
    """Whether NumPy would make numbers of it."""
    if _is_array(value):
        return _has_kind(value, jnp.number)
    if isinstance(value, list | tuple):
        return all(map(_is_numbers, value))
    return _is_number(value)


_NUMBER = _Rule("a number", _is_number)
_ARRAY = _Rule(
    "an array", lambda value: _is_array(value) or isinstance(value, bool) or _is_numbers(value)
)
_TIMES = _Rule("a number, or one time an example, (batch,)", _is_numbers)
_SEQUENCE = _Rule(
    "a tuple", lambda value: isinstance(value, Sequence) and not isinstance(value, str)
)
_BY_TYPE: dict[Any, _Rule] = {
    float: _NUMBER,
    int: _Rule("a whole number", _is_whole),
    bool: _Rule("True or False", lambda value: isinstance(value, bool | np.bool_)),
    str: _Rule("a string", lambda value: isinstance(value, str)),
    type(None): _Rule("None", lambda value: value is None),
    np.ndarray: _Rule("an array of numbers", _is_numbers),
    jax.Array: _ARRAY,
}
# jaxtyping's name of a kind -> (what it is in a message, JAX's dtype).
_KINDS: dict[str, tuple[str, Any]] = {
    "Float": ("a floating-point array", jnp.floating),
    "Float64": ("a float64 array", np.float64),
    "Integer": ("an array of whole numbers", jnp.integer),
    "Bool": ("an array of True and False", np.bool_),
    "Real": ("an array of numbers", jnp.number),
    "Key": ("jax.random.key(seed)", jax.dtypes.prng_key),
}


def checked(function: Function) -> Function:
    """The function, which raises for arguments that its annotations do not allow.

    Raises (when called):
      TypeError: an argument of another type, or an array of another type or number of axes.
      ValueError: arrays whose sizes do not fit together; `t` or `s` out of [0, T] of a `schedule`
        or `prediction` that is another argument, where their values are known.
    """
    signature = inspect.signature(function)
    rules = {
        name: rule
        for name, parameter in signature.parameters.items()
        if (rule := _rule(parameter.annotation)) is not None
    }
    shapes = {
        name: shape
        for name, parameter in signature.parameters.items()
        if (shape := _shape(parameter.annotation)) is not None
    }
    timed = [
        name for name, p in signature.parameters.items()
        if name in ("t", "s") and (p.annotation in (Times, TimePerExample) or name in shapes)
    ]  # fmt: skip

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            given = signature.bind(*args, **options).arguments
        except TypeError:
            return function(*args, **options)  # Python says what is missing or too much
        for name, value in given.items():
            if name in rules and not rules[name].holds(value):
                raise TypeError(
                    f"{name} of {function.__name__} must be {rules[name].expected}, not "
                    f"{_shown(value)}"
                )
        _check_shapes({k: (given[k], dims) for k, dims in shapes.items() if k in given})
        schedule = given.get("schedule", getattr(given.get("prediction"), "schedule", None))
        if schedule is not None:
            for name in timed:
                if name in given:
                    check_times(given[name], schedule, name=name)
        return function(*args, **options)

    return cast(Function, call)


def check_times(t: Any, schedule: Any, *, name: str = "t") -> None:
    """Raises ValueError for times out of [0, T] of a schedule; traced ones pass.

    Raises:
      TypeError: what is no number or array of numbers.
    """
    if isinstance(t, jax.core.Tracer):
        return
    if not _is_numbers(t):
        raise TypeError(f"{name} must be {_TIMES.expected}, not {_shown(t)}")
    values = np.asarray(t, np.float64)
    low, high = min(0.0, schedule.t_min), schedule.T
    # float32 may round a time up; written so that NaN is refused, too.
    inside = (values >= low) & (values <= high * (1 + 1e-6))
    if not inside.all():
        raise ValueError(
            f"{name} must be in [{low:g}, {high:g}], the schedule's times, not "
            f"{values[~inside].flat[0]:g}"
        )


def _rule(annotation: Any) -> _Rule | None:
    """None where anything is allowed, or the annotation says too little."""
    if annotation in (inspect.Parameter.empty, Any) or isinstance(annotation, str):
        return None
    if annotation == Times:
        return _TIMES
    if annotation == ArrayLike or annotation is Numbers:
        return _ARRAY._replace(expected="a number or an array")
    if annotation in _BY_TYPE:
        return _BY_TYPE[annotation]
    if _is_jaxtyped(annotation):
        return _array_rule(annotation)
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [_rule(part) for part in typing.get_args(annotation)]
        if None in parts:
            return None
        found = cast(list[_Rule], parts)
        expected = " or ".join(dict.fromkeys(rule.expected for rule in found))
        return _Rule(expected, lambda value: any(rule.holds(value) for rule in found))
    if origin in (tuple, Sequence):
        return _SEQUENCE
    if origin is Callable:
        return _Rule("a function", callable)
    kind = origin or annotation
    if not isinstance(kind, type):
        return None
    if getattr(kind, "_is_protocol", False) and not any(n[0] != "_" for n in vars(kind)):
        return _Rule(f"a {kind.__name__}, a function", callable)
    module = kind.__module__.removeprefix("diffjax.").split(".")[0]
    return _Rule(f"a {module}.{kind.__name__}", lambda value: isinstance(value, kind))


def _is_jaxtyped(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray)


def _array_rule(annotation: Any) -> _Rule | None:
    kind = _KINDS.get(annotation.dtype.__name__)
    if kind is None:
        return None
    what, dtype = kind
    axes = tuple(annotation.dim_str.split())
    # A number is as good as an array without axes.
    least = len(axes) - any(axis.startswith(("*", "...")) for axis in axes)

    def holds(value: Any) -> bool:
        if not _is_array(value):
            return least == 0 and dtype is not jax.dtypes.prng_key and _is_number(value)
        return _has_kind(value, dtype)

    return _Rule(f"{what} {_tuple(axes)}" if axes else what, holds)


def _tuple(axes: tuple[str, ...]) -> str:
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"


def _shape(annotation: Any) -> tuple[str, ...] | None:
    """The names of an array's axes; None where there are none, or sums of names."""
    args = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and len(args) == 1:
        annotation = args[0]
    if not _is_jaxtyped(annotation):
        return None
    axes = tuple(annotation.dim_str.split())
    return axes if all(axis.removeprefix("*").isidentifier() for axis in axes) else None


def _check_shapes(arrays: dict[str, tuple[Any, tuple[str, ...]]]) -> None:
    """Raises ValueError where axes of one name have two sizes."""
    known: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, (value, axes) in arrays.items():
        if value is None:
            continue
        shape = np.shape(value)
        free = len(shape) - len(axes) + 1  # number of axes in *shape
        if free < 0 or (free != 1 and not any(axis.startswith("*") for axis in axes)):
            raise ValueError(f"{name} of shape {shape} must have the axes {_tuple(axes)}")
        at = 0
        for axis in axes:
            size = free if axis.startswith("*") else 1
            found = shape[at : at + size]
            first, other = known.setdefault(axis, (found, name))
            if found != first:
                raise ValueError(
                    f"{name} of shape {shape} does not fit {other} of shape "
                    f"{np.shape(arrays[other][0])}: {axis.removeprefix('*')} must be the same"
                )
            at += size


def _shown(value: Any) -> str:
    if _is_array(value) and value.ndim:
        return f"an array of {value.dtype} and shape {value.shape}"
    if isinstance(value, jax.core.Tracer):
        return f"a traced {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
