"""Weights that PyTorch saved, read without PyTorch and without running a pickle.

torch.save writes a pickle that says how to build a dictionary of tensors, and beside it the
tensors' numbers: since 1.6 as entries of a zip file, before that one after the other in the same
file. Loading a pickle runs whatever it names. Here it is only disassembled, and a machine that
knows the few instructions and names of a state_dict follows it; at anything else it stops.
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

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
# A state_dict takes about 20 instructions a tensor.
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
    """Why a file is refused, in words that follow "cannot read it: "."""


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
    """The arrays of a file that `torch.save(model.state_dict(), path)` wrote, by name.

    Both formats of torch.save are read; little-endian ones only.

    Args:
      path: the file, usually .pth or .pt.
      prefix: only names that start with it are read; names keep it.

    Returns:
      read-only arrays of the stored types.

    Raises:
      UserError: no such file, one that is cut short or of another format, or one whose pickle asks
        for anything that a state_dict of plain arrays does not need. Nothing of it is run.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                return _read_zip(file, size, prefix)
            if start[:1] == b"\x80":
                return _read_legacy(file, size, prefix)
        raise _Unreadable("it starts as neither of PyTorch's formats does")
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
        # What a damaged file makes of genops, the machine, zipfile and NumPy.
        ArithmeticError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
        struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:120]
        raise _refusal(path, f"it is damaged ({reason or type(error).__name__})") from error


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(
        f"cannot read PyTorch weights from {path}: {reason}; expected what "
        "torch.save(model.state_dict(), path) writes; save or download it again"
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
        raise _Unreadable("its list of storages is not that of its tensors")
    _check_total(storages, size)

    wanted = {tensor.storage.key for tensor in tensors.values()}
    content = {}
    for key in keys:
        storage = storages[key]
        if int.from_bytes(_exactly(file, 8), "little") != storage.length:
            raise _Unreadable(f"its storage {key[:80]!r} is not as long as it says")
        if key in wanted:
            content[key] = np.frombuffer(_exactly(file, storage.bytes), storage.dtype)
        else:
            file.seek(storage.bytes, os.SEEK_CUR)
    if file.tell() > size:
        raise _Unreadable("it is cut short")
    return {name: _view(tensor, content) for name, tensor in tensors.items()}


def _exactly(file: BinaryIO, count: int) -> bytes:
    read = file.read(count)
    if len(read) != count:
        raise _Unreadable("it is cut short")
    return read


def _check_total(storages: Mapping[str, _Storage], size: int) -> None:
    total = sum(storage.bytes for storage in storages.values())
    if total > size:
        raise _Unreadable(f"it should hold {total} bytes of numbers, but has {size} in all")


def _tensors(value: Any, prefix: str) -> dict[str, _Tensor]:
    if not isinstance(value, dict) or not all(isinstance(v, _Tensor) for v in value.values()):
        raise _Unreadable("it holds other things than tensors by name")
    return {name: tensor for name, tensor in value.items() if name.startswith(prefix)}


def _view(tensor: _Tensor, content: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The tensor's part of its storage; never more numbers than that has."""
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
    """What the pickle at the file's position describes, up to its end.

    Args:
      file: binary, at a pickle's first byte; left behind its last.
      storages: gets every storage that is named, by key.

    Returns:
      numbers, strings, tuples, lists, dicts with strings as keys, and `_Tensor`.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # what lies below each mark
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
                    raise _Unreadable("its pickle is damaged")
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
                        f"its pickle asks for {argument.replace(' ', '.')[:80]!r}, which no plain "
                        "state_dict needs and which is never run"
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
                # A state_dict's attribute _metadata: versions of modules, no weights.
                _expect(stack.pop(), dict)
                _expect(stack[-1], dict)
            case other:
                raise _Unreadable(f"its pickle has the instruction {other}, which is never run")
    raise _Unreadable("it is cut short")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _Unreadable(f"its pickle has a {type(value).__name__} for a {kind.__name__}")
    return value


def _storage(
    tag: str, kind: _Name, key: str, location: str, length: int, view: None = None
) -> _Storage:
    # `location` is the device that it lay on; a legacy file's `view` is a part of another storage.
    dtype = _DTYPES.get(_expect(kind, _Name).name)
    if tag != "storage" or dtype is None or view is not None or not _counts((length,)):
        raise _Unreadable("its pickle names a storage of a kind that is not known here")
    return _Storage(_expect(key, str), np.dtype(dtype), length)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """What an `OrderedDict`, a tensor or a parameter is made of."""
    if name == _DICTIONARY:
        # Python 2 gave its items here, as lists of two.
        (items,) = arguments or ([],)
        return {_expect(key, str): value for key, value in items}
    if name == _PARAMETER:
        tensor, _, _ = arguments
        return _expect(tensor, _Tensor)
    if name == _TENSOR:
        storage, offset, shape, strides = arguments[:4]
        shape, strides = _expect(shape, tuple), _expect(strides, tuple)
        if not _counts((offset, *shape, *strides)) or len(shape) != len(strides):
            raise _Unreadable("its pickle has a tensor of an impossible shape")
        return _Tensor(_expect(storage, _Storage), offset, shape, strides)
    raise _Unreadable("its pickle builds a storage by itself")


def _counts(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
