"""An interpreter of the pickles in PyTorch's files, which executes nothing.

Unpickling can execute arbitrary code. Here a pickle is only disassembled and interpreted by a
machine with the few instructions and names of a state_dict. What else a training checkpoint has
besides its weights, such as its callbacks, becomes a `Skipped` by its name; any other name is an
error.
"""

import pickletools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# A state_dict has about 20 instructions per tensor.
MOST_INSTRUCTIONS = 1_000_000

_DTYPES: Mapping[str, Any] = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": jnp.bfloat16,
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "i1",
    "torch ByteStorage": "u1",
    "torch BoolStorage": "?",
}
_DICTIONARY = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_KNOWN = {_DICTIONARY, _TENSOR, _PARAMETER, *_DTYPES}
# Packages of what a training checkpoint has besides weights, and single names of others.
_SKIPPED_PACKAGES = (
    "argparse", "collections", "lightning", "lightning_fabric", "numpy", "omegaconf", "pathlib",
    "pytorch_lightning", "torch", "typing",
)  # fmt: skip
_SKIPPED_NAMES = (
    "_codecs encode", "__builtin__ object", "__builtin__ set", "builtins object", "builtins set",
    "copy_reg _reconstructor", "copyreg _reconstructor",
)  # fmt: skip


class Unreadable(Exception):
    """A file is refused; the message is the reason."""


class Skipped(NamedTuple):
    """Something that is no number, string, container or tensor.

    Attributes:
      name: "module name" of its type or of the function that makes it, which was not called.
    """

    name: str


class _Name(NamedTuple):
    name: str  # "module name"


class Storage(NamedTuple):
    """The numbers of one or more tensors."""

    key: str
    dtype: np.dtype[Any]
    length: int

    @property
    def bytes(self) -> int:
        """Of the numbers."""
        return self.length * self.dtype.itemsize


class Tensor(NamedTuple):
    """A view of a storage; offset and strides are counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def follow(file: Any, storages: dict[str, Storage]) -> Any:
    """Interprets the pickle at the file's position.

    Args:
      file: binary, at a pickle's first byte; afterwards one past its last.
      storages: filled with the pickle's storages by key.

    Returns:
      numbers, strings, tuples, lists, dicts, `Tensor` and `Skipped`.

    Raises:
      Unreadable: an instruction or a name that is not allowed. A corrupt pickle raises other
        errors, too: LookupError, TypeError, ValueError, ArithmeticError.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stack below each mark
    memo: dict[int, Any] = {}
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == MOST_INSTRUCTIONS:
            raise Unreadable(f"its pickle has over {MOST_INSTRUCTIONS} instructions")
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                (value,) = stack
                return value
            case "MARK":
                outer.append(stack)
                stack = []
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE"
                | "SHORT_BINSTRING" | "BINSTRING"
            ):  # fmt: skip
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                if len(stack) < length:
                    raise Unreadable("its pickle is corrupt")
                stack[-length:] = [tuple(stack[-length:])]
            case "TUPLE":
                stack, items = outer.pop(), stack
                stack.append(tuple(items))
            case "APPEND":
                value = stack.pop()
                _filled(stack[-1], list).append(value)
            case "APPENDS":
                stack, items = outer.pop(), stack
                _filled(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _filled(stack[-1], dict)[key] = value
            case "SETITEMS":
                stack, items = outer.pop(), stack
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _filled(stack[-1], dict)[key] = value
            case "GLOBAL":
                if argument not in _KNOWN and not _is_skipped(argument):
                    raise Unreadable(
                        f"its pickle refers to {argument.replace(' ', '.')[:80]!r}, which is not "
                        "part of a plain state_dict and is never executed"
                    )
                stack.append(_Name(argument))
            case "REDUCE":
                arguments, name = _expect(stack.pop(), tuple), _expect(stack.pop(), _Name)
                stack.append(_call(name.name, arguments))
            case "NEWOBJ":
                _expect(stack.pop(), tuple)
                name = _expect(stack.pop(), _Name)
                if name.name in _KNOWN:
                    raise Unreadable("its pickle builds a state_dict's type in an unknown way")
                stack.append(Skipped(name.name))
            case "BINPERSID":
                storage = _storage(*_expect(stack.pop(), tuple))
                if storages.setdefault(storage.key, storage) != storage:
                    raise Unreadable("its pickle names one storage in two ways")
                stack.append(storage)
            case "BUILD":
                # A state_dict's attribute _metadata: module versions, not weights.
                state = stack.pop()
                if type(stack[-1]) is not Skipped:
                    _expect(state, dict)
                    _expect(stack[-1], dict)
            case other:
                raise Unreadable(f"its pickle has the instruction {other}, which is not allowed")
    raise Unreadable("it is truncated")


def _is_skipped(name: str) -> bool:
    module = name.partition(" ")[0]
    return module.partition(".")[0] in _SKIPPED_PACKAGES or name in _SKIPPED_NAMES


def _filled(value: Any, kind: type) -> Any:
    """A container, or a new one for what is skipped."""
    return kind() if type(value) is Skipped else _expect(value, kind)


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Unreadable(f"its pickle has a {type(value).__name__} for a {kind.__name__}")
    return value


def _storage(
    tag: str, kind: _Name, key: str, location: str, length: int, view: None = None
) -> Storage:
    # `location` is the device it was on; a legacy file's `view` is a part of another storage.
    dtype = _DTYPES.get(_expect(kind, _Name).name)
    if tag != "storage" or dtype is None or view is not None or not _counts((length,)):
        raise Unreadable("its pickle has a storage of an unsupported kind")
    return Storage(_expect(key, str), np.dtype(dtype), length)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """The result of calling `OrderedDict`, _rebuild_tensor_v2 or _rebuild_parameter.

    Others are not called, but skipped.
    """
    if name == _DICTIONARY:
        # Python 2 passed the items here, as lists of two.
        (items,) = arguments or ([],)
        return dict(items)
    if name == _PARAMETER:
        tensor, _, _ = arguments
        return _expect(tensor, Tensor)
    if name == _TENSOR:
        storage, offset, shape, strides = arguments[:4]
        shape, strides = _expect(shape, tuple), _expect(strides, tuple)
        if not _counts((offset, *shape, *strides)) or len(shape) != len(strides):
            raise Unreadable("its pickle has a tensor of an invalid shape")
        return Tensor(_expect(storage, Storage), offset, shape, strides)
    if name in _DTYPES:
        raise Unreadable("its pickle builds a storage by itself")
    return Skipped(name)


def _counts(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
