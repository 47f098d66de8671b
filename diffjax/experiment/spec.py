"""The object of a config string: a name in a table or a path into user code.

    "cosine"   "linear_beta(T=500)"   "my_package.nets:DiT(depth=12)"   "optax:lion(b1=0.95)"

A path `module:Name` may replace a name. The module is found on sys.path, to which the command line
adds the config file's folder. Arguments are literals; nothing is evaluated. A path names one of two
kinds of object:

    makers      the named class or function is called with the arguments and returns the object:
                networks, data sets, objectives, schedules, parametrisations, text encoders,
                image embeddings, perceptual networks (`from_spec`)
    functions   the named function is the object and the arguments are bound to it as keywords:
                samplers, grids, guidance, thresholds, weightings, time sampling, maps, optimizers
                (`function_from_spec`)

In place of a maker a path may also name the object itself, without arguments.
"""

import ast
import difflib
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from diffjax.errors import UserError

# Allowed types of an argument, by the type of its default.
_KINDS: Mapping[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a string"),
    tuple: ((tuple, list), "values in parentheses"),
}

# A longer table's names are not listed in a message.
MOST_NAMES = 30
# Parameters of core functions that a config string does not set.
_GIVEN = ("grid", "key", "cond", "keep_trajectory", "schedule", "null")
_PATH = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)\s*(\(.*\))?", re.DOTALL)


class Spec(NamedTuple):
    """A parsed config string.

    Attributes:
      name: a table's key, or the object's name in its module.
      arguments: literals by keyword.
      module: "" for a table's key.
      called: whether there were parentheses.
    """

    name: str
    arguments: dict[str, Any]
    module: str = ""
    called: bool = False

    @property
    def path(self) -> str:
        """`module:Name`, or the name alone."""
        return f"{self.module}:{self.name}" if self.module else self.name


def is_path(text: str) -> bool:
    """Whether a config string is a path `module:Name`.

    >>> is_path("my_package.nets:DiT(depth=12)"), is_path("tfds:cifar10"), is_path("unet")
    (True, True, False)
    """
    return _PATH.fullmatch(text.strip()) is not None


def parse_spec(text: str, *, key: str) -> Spec:
    """Parses "name", "name(argument=literal, ...)" or either with a prefix "module:".

    Raises:
      UserError: the text has another form.

    >>> parse_spec("min_snr(gamma=3)", key="diffusion.weighting")
    Spec(name='min_snr', arguments={'gamma': 3}, module='', called=True)
    >>> parse_spec("my.nets:DiT", key="model.name").path
    'my.nets:DiT'
    """
    found = _PATH.fullmatch(text.strip())
    module, call_text = "", text.strip()
    if found:
        module, name, arguments_text = found.groups()
        call_text = f"{name.rpartition('.')[2]}{arguments_text or ''}"
    try:
        call = ast.parse(call_text, mode="eval").body
        if isinstance(call, ast.Name):
            return Spec(name if found else call.id, {}, module)
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise ValueError("not a call with named arguments")
        arguments = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
        if len(arguments) != len(call.keywords):
            raise ValueError("unpacking")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise UserError(
            f"config.{key} = {text!r}: expected 'name', 'name(argument=number)' or "
            "'module:Name(argument=number)'"
        ) from None
    return Spec(name if found else call.func.id, arguments, module, called=True)


def import_path(spec: Spec, *, text: str, key: str) -> Any:
    """The object that a path names.

    Raises:
      UserError: the module can't be imported or lacks the name; the message has the reason.
    """
    try:
        found = importlib.import_module(spec.module)
    except (Exception, SystemExit) as error:  # SystemExit: argparse at import, for example
        top = spec.module.split(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == top
        reason = (
            f"there is no module {top!r} next to the config file or on sys.path: add its "
            "folder to PYTHONPATH"
            if missing
            else f"importing {spec.module} failed: {_where(error)}{type(error).__name__}: {error}"
        )
        raise UserError(f"config.{key} = {text!r}: {' '.join(reason.split())}") from error
    for part in spec.name.split("."):
        if not hasattr(found, part):
            raise UserError(
                f"config.{key} = {text!r}: {spec.module} ({getattr(found, '__file__', '?')}) has "
                f"no {spec.name!r}"
            )
        found = getattr(found, part)
    return found


def _where(error: BaseException) -> str:
    """The file and line of an error in user code, if known."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if isinstance(error, SyntaxError) or frame is None:
        return ""
    return f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}: "


def parameters_of(text: str, *, key: str) -> frozenset[str]:
    """The names of the parameters of a path's maker; none for a finished object.

    Raises:
      UserError: no path, or one that can't be imported.

    >>> sorted(parameters_of("textwrap:indent(prefix='> ')", key="some.key"))
    ['predicate', 'prefix', 'text']
    """
    spec = parse_spec(text, key=key)
    found = import_path(spec, text=text, key=key)
    return frozenset(_parameters(found)) if _is_maker(found) else frozenset()


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """A maker that binds the keywords of a core function that a config may set."""
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


def from_spec(
    text: str,
    table: Mapping[str, Callable[..., Any]],
    *,
    key: str,
    given: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Any:
    """The object of a config string, from a table's maker or the maker of a path.

    Args:
      text: see the module docstring.
      table: name -> maker.
      key: the config key, for error messages.
      given: arguments for a path's maker, passed if it has parameters of these names and the text
        does not set them.
      extra: further arguments, such as the fields of the key's section.

    Raises:
      UserError: an unknown name or path, or arguments that the maker does not take.

    >>> from_spec("twice(x=3)", {"twice": lambda x: 2 * x}, key="some.key")
    6
    >>> from_spec("fractions:Fraction(numerator=3)", {}, key="some.key")
    Fraction(3, 1)
    """
    spec = parse_spec(text, key=key)
    if spec.module:
        make = import_path(spec, text=text, key=key)
    elif spec.name in table:
        make = table[spec.name]
    else:
        raise _unknown(text, table, key=key)
    return call_maker(make, spec, text=text, key=key, given=given, extra=extra)


def from_table(text: str, table: Mapping[str, Callable[..., Any]], *, key: str) -> Any:
    """The object of a config string in a table, for a key that takes no path.

    Raises:
      UserError: an unknown name, or arguments that the maker does not take.

    >>> from_table("twice(x=3)", {"twice": lambda x: 2 * x}, key="some.key")
    6
    """
    spec = parse_spec(text, key=key)
    if spec.module or spec.name not in table:
        raise UserError(f"config.{key} = {text!r}: expected one of {', '.join(table)}")
    return call_maker(table[spec.name], spec, text=text, key=key)


def call_maker(
    make: Any,
    spec: Spec,
    *,
    text: str,
    key: str,
    given: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Any:
    """Calls a spec's maker; see `from_spec`.

    Raises:
      UserError: arguments that the maker does not take, or an error inside it.
    """
    arguments = dict(extra or {})
    if both := sorted(arguments.keys() & spec.arguments.keys()):
        raise UserError(
            f"config.{key} = {text!r}: {both[0]} is also set in the section: set it in one place"
        )
    arguments |= spec.arguments
    if not _is_maker(make):
        if arguments or spec.called:
            raise UserError(f"config.{key} = {text!r}: {spec.path} is an object, not a maker")
        return make
    if spec.module:
        arguments = _handed(make, given or {}) | arguments
    return _call(make, arguments, text=text, key=key)


def function_from_spec(
    text: str, table: Mapping[str, Callable[..., Any]], *, key: str
) -> Callable[..., Any]:
    """The function of a config string, from a table's maker or a path with its keywords bound.

    Raises:
      UserError: an unknown name or path, an object that is not callable, or an unknown keyword.

    >>> function_from_spec("math:isclose(rel_tol=0.5)", {}, key="some.key")(1.0, 1.4)
    True
    """
    spec = parse_spec(text, key=key)
    if not spec.module:
        return from_spec(text, table, key=key)
    function = import_path(spec, text=text, key=key)
    if not callable(function):
        raise UserError(f"config.{key} = {text!r}: {spec.path} is not a function")
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return partial(function, **spec.arguments)
    keywords = {
        name
        for name, p in parameters.items()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in spec.arguments:
        if name not in keywords and not open_ended:
            raise UserError(
                f"config.{key} = {text!r}: {spec.name} takes {', '.join(sorted(keywords))}, not "
                f"{name}"
            )
    return partial(function, **spec.arguments) if spec.arguments else function


def _unknown(text: str, table: Mapping[str, Any], *, key: str) -> UserError:
    names = ", ".join(table)
    if len(table) > MOST_NAMES:
        name = re.split(r"\W", text.strip(), maxsplit=1)[0]
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.0)
        names = f"{len(table)} names, such as {', '.join(near)} (--help={key} lists them all)"
    return UserError(
        f"config.{key} = {text!r}: expected one of {names}, or 'module:Name' for your own"
    )


def _is_maker(found: Any) -> bool:
    return inspect.isclass(found) or inspect.isroutine(found) or isinstance(found, partial)


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """A maker's parameters by name; none where Python can't tell."""
    try:
        return inspect.signature(make).parameters
    except (ValueError, TypeError):
        return {}


def _handed(make: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What of `given` a maker has a parameter for."""
    parameters = _parameters(make)
    return {name: value for name, value in given.items() if name in parameters}


def _call(make: Callable[..., Any], arguments: Mapping[str, Any], *, text: str, key: str) -> Any:
    try:
        _check_kinds(make, arguments)
        return make(**arguments)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
        raise UserError(f"config.{key} = {text!r}: {_plain(error)}") from error
    except Exception as error:
        if ":" not in text:  # a bug in diffjax, not in user code
            raise
        reason = f"{_where(error)}{type(error).__name__}: {error}"
        raise UserError(f"config.{key} = {text!r}: {' '.join(reason.split())}") from error


def _check_kinds(make: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument that is not of its default's type, or not finite."""
    parameters = _parameters(make)
    for name in arguments.keys() & parameters.keys():
        value, parameter = arguments[name], parameters[name]
        default = parameter.default
        kinds, expected = _KINDS.get(type(default), ((), ""))
        if default is None and parameter.annotation in (float | None, "float | None"):
            kinds, expected = (int, float, type(None)), "a number"
        if not kinds:
            continue
        # Infinity is allowed if it is the default.
        finite = not isinstance(value, float) or math.isfinite(value) or default == math.inf
        if type(value) not in kinds or not finite:
            such = "" if default is None else f" such as {default!r}"
            raise ValueError(f"{name} must be {expected}{such}, not {value!r}")


def _plain(error: Exception) -> str:
    """Python's message for a wrong call, without the name of the internal function."""
    return re.sub(r"^[\w.<>]+\(\) ", "", " ".join(str(error).split()))


def add_to_path(folder: str) -> None:
    """Appends a folder to sys.path, if it is not there."""
    if folder not in sys.path:
        sys.path.append(folder)
