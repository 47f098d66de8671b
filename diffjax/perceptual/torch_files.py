"""A reader of PyTorch weights without PyTorch and without executing pickles.

torch.save writes a pickle that describes a dictionary of tensors, and the tensors' data: since
1.6 as entries of a zip file, before that consecutively in the same file. Unpickling can execute
arbitrary code. Here the pickle is only disassembled and interpreted by a machine with the few
instructions and names of a state_dict; anything else is an error.
"""

import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError
from diffjax.files import expanded

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
# A state_dict has about 20 instructions per tensor.
MOST_INSTRUCTIONS = 1_000_000

_DTYPES: Mapping[str, str] = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
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


class _Unreadable(Exception):
    """A file is refused; the message is the reason."""


class _Name(NamedTuple):
    name: str  # "module name"


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype[Any]
    length: int

    @property
    def bytes(self) -> int:
        return self.length * self.dtype.itemsize


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(
    path: str | os.PathLike[str], *, prefix: str = ""
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file written by `torch.save(model.state_dict(), path)`, by name.

    Reads both formats of torch.save, little-endian only.

    Args:
      path: the file, usually .pth or .pt.
      prefix: only names that start with it are read; names keep it.

    Returns:
      read-only arrays of the stored types.

    Raises:
      UserError: no such file, a truncated one or another format, or a pickle with anything that a
        state_dict of plain arrays does not need, none of which is executed.
    """
    path = expanded(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                return _read_zip(file, size, prefix)
            if start[:1] == b"\x80":
                return _read_legacy(file, size, prefix)
        raise _Unreadable("it has neither of PyTorch's formats")
    except FileNotFoundError as error:
        raise UserError(
            f"found no file at {path}; expected PyTorch weights, usually .pth; check the path"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot open {path} ({error.strerror or error}); expected a file of PyTorch weights; "
            "check the path"
        ) from error
    except _Unreadable as error:
        raise _refusal(path, str(error)) from error
    except (
        # Raised for corrupt files by genops, the machine, zipfile and NumPy.
        ArithmeticError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
        struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:120]
        raise _refusal(path, f"it is corrupt ({reason or type(error).__name__})") from error


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(
        f"cannot read PyTorch weights from {path}: {reason}; expected the output of "
        "torch.save(model.state_dict(), path); save or download it again"
    )


def _read_zip(file: BinaryIO, size: int, prefix: str) -> dict[str, npt.NDArray[Any]]:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise _Unreadable("it is a zip file without one data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise _Unreadable("its entries are compressed, which torch.save never does")
        (root,) = roots
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise _Unreadable("its numbers are big-endian")

        storages: dict[str, _Storage] = {}
        with archive.open(f"{root}data.pkl") as pickled:
            tensors = _tensors(_follow(pickled, storages), prefix)
        _check_total(storages, size)
        content = {}
        for storage in {tensor.storage for tensor in tensors.values()}:
            name = f"{root}data/{storage.key}"
            if name not in entries or entries[name].file_size != storage.bytes:
                raise _Unreadable(f"its entry {name[:80]!r} is missing or of the wrong size")
            content[storage.key] = np.frombuffer(archive.read(name), storage.dtype)
    return {name: _view(tensor, content) for name, tensor in tensors.items()}


def _read_legacy(file: BinaryIO, size: int, prefix: str) -> dict[str, npt.NDArray[Any]]:
    storages: dict[str, _Storage] = {}
    if _follow(file, {}) != LEGACY_MAGIC:
        raise _Unreadable("it is a pickle without PyTorch's magic number")
    if _follow(file, {}) != LEGACY_VERSION:
        raise _Unreadable(f"its format is not version {LEGACY_VERSION}")
    if _expect(_follow(file, {}), dict).get("little_endian") is not True:
        raise _Unreadable("its numbers are big-endian")
    tensors = _tensors(_follow(file, storages), prefix)
    keys = _follow(file, {})
    if sorted(keys) != sorted(storages):
        raise _Unreadable("its list of storages does not match its tensors")
    _check_total(storages, size)

    needed = {tensor.storage.key for tensor in tensors.values()}
    content = {}
    for key in keys:
        storage = storages[key]
        if int.from_bytes(_exactly(file, 8), "little") != storage.length:
            raise _Unreadable(f"its storage {key[:80]!r} has another length than declared")
        if key in needed:
            content[key] = np.frombuffer(_exactly(file, storage.bytes), storage.dtype)
        else:
            file.seek(storage.bytes, os.SEEK_CUR)
    if file.tell() > size:
        raise _Unreadable("it is truncated")
    return {name: _view(tensor, content) for name, tensor in tensors.items()}


def _exactly(file: BinaryIO, count: int) -> bytes:
    read = file.read(count)
    if len(read) != count:
        raise _Unreadable("it is truncated")
    return read


def _check_total(storages: Mapping[str, _Storage], size: int) -> None:
    total = sum(storage.bytes for storage in storages.values())
    if total > size:
        raise _Unreadable(f"its tensors need {total} bytes, but the file has {size}")


def _tensors(value: Any, prefix: str) -> dict[str, _Tensor]:
    if not isinstance(value, dict) or not all(isinstance(v, _Tensor) for v in value.values()):
        raise _Unreadable("it is not a dictionary of tensors")
    return {name: tensor for name, tensor in value.items() if name.startswith(prefix)}


def _view(tensor: _Tensor, content: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The tensor as a view of its storage, checked against the storage's length."""
    storage, offset, shape, strides = tensor
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= storage.length or math.prod(shape) > storage.length:
        raise _Unreadable(f"a tensor of shape {str(shape)[:80]} is larger than its storage")
    steps = [step * storage.dtype.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(
        content[storage.key][offset:], shape, steps, writeable=False
    )


def _follow(file: Any, storages: dict[str, _Storage]) -> Any:
    """Interprets the pickle at the file's position.

    Args:
      file: binary, at a pickle's first byte; afterwards one past its last.
      storages: filled with the pickle's storages by key.

    Returns:
      numbers, strings, tuples, lists, dicts with strings as keys, and `_Tensor`.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stack below each mark
    memo: dict[int, Any] = {}
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == MOST_INSTRUCTIONS:
            raise _Unreadable(f"its pickle has over {MOST_INSTRUCTIONS} instructions")
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
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINSTRING":
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
                    raise _Unreadable("its pickle is corrupt")
                stack[-length:] = [tuple(stack[-length:])]
            case "TUPLE":
                stack, items = outer.pop(), stack
                stack.append(tuple(items))
            case "APPEND":
                value = stack.pop()
                _expect(stack[-1], list).append(value)
            case "APPENDS":
                stack, items = outer.pop(), stack
                _expect(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _expect(stack[-1], dict)[_expect(key, str)] = value
            case "SETITEMS":
                stack, items = outer.pop(), stack
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _expect(stack[-1], dict)[_expect(key, str)] = value
            case "GLOBAL":
                if argument not in _KNOWN:
                    raise _Unreadable(
                        f"its pickle refers to {argument.replace(' ', '.')[:80]!r}, which is not "
                        "part of a plain state_dict and is never executed"
                    )
                stack.append(_Name(argument))
            case "REDUCE":
                arguments, name = _expect(stack.pop(), tuple), _expect(stack.pop(), _Name)
                stack.append(_call(name.name, arguments))
            case "BINPERSID":
                storage = _storage(*_expect(stack.pop(), tuple))
                if storages.setdefault(storage.key, storage) != storage:
                    raise _Unreadable("its pickle names one storage in two ways")
                stack.append(storage)
            case "BUILD":
                # A state_dict's attribute _metadata: module versions, not weights.
                _expect(stack.pop(), dict)
                _expect(stack[-1], dict)
            case other:
                raise _Unreadable(f"its pickle has the instruction {other}, which is not allowed")
    raise _Unreadable("it is truncated")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _Unreadable(f"its pickle has a {type(value).__name__} for a {kind.__name__}")
    return value


def _storage(
    tag: str, kind: _Name, key: str, location: str, length: int, view: None = None
) -> _Storage:
    # `location` is the device it was on; a legacy file's `view` is a part of another storage.
    dtype = _DTYPES.get(_expect(kind, _Name).name)
    if tag != "storage" or dtype is None or view is not None or not _counts((length,)):
        raise _Unreadable("its pickle has a storage of an unsupported kind")
    return _Storage(_expect(key, str), np.dtype(dtype), length)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """The result of calling `OrderedDict`, _rebuild_tensor_v2 or _rebuild_parameter."""
    if name == _DICTIONARY:
        # Python 2 passed the items here, as lists of two.
        (items,) = arguments or ([],)
        return {_expect(key, str): value for key, value in items}
    if name == _PARAMETER:
        tensor, _, _ = arguments
        return _expect(tensor, _Tensor)
    if name == _TENSOR:
        storage, offset, shape, strides = arguments[:4]
        shape, strides = _expect(shape, tuple), _expect(strides, tuple)
        if not _counts((offset, *shape, *strides)) or len(shape) != len(strides):
            raise _Unreadable("its pickle has a tensor of an invalid shape")
        return _Tensor(_expect(storage, _Storage), offset, shape, strides)
    raise _Unreadable("its pickle builds a storage by itself")


def _counts(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
