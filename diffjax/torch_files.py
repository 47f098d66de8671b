"""A reader of PyTorch weights without PyTorch and without executing pickles.

torch.save writes a pickle that describes a dictionary of tensors, and the tensors' data: since
1.6 as entries of a zip file, before that consecutively in the same file. The pickle is interpreted
by `torch_pickle`, which executes nothing; the data are read one storage at a time.
"""

import contextlib
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from diffjax.errors import UserError
from diffjax.files import expanded
from diffjax.torch_pickle import Skipped, Storage, Tensor, Unreadable, follow

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
# Where a training checkpoint has its weights.
STATE_DICT = "state_dict"
# Length of what is before an entry's name in a zip file.
_LOCAL_HEADER = 30


class _Content(NamedTuple):
    """A file's pickle, and the numbers of each of its storages."""

    value: Any
    fetch: Callable[[Storage], npt.NDArray[Any]]


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
    with _refusing(path), open(path, "rb") as file:
        found = _content(file)
        tensors = {
            name: tensor
            for name, tensor in _tensors(found.value).items()
            if name.startswith(prefix)
        }
        content = {
            storage.key: np.array(found.fetch(storage))
            for storage in {tensor.storage for tensor in tensors.values()}
        }
        return {name: _view(tensor, content) for name, tensor in tensors.items()}


class StateDict:
    """The tensors of a file, read one at a time.

    The file is a state_dict, or a training checkpoint with one under "state_dict", whose other
    entries are not read; or it has several by name, such as those of an IP-Adapter, whose tensors
    are "name.tensor" then.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the names and shapes.

        Raises:
          UserError: as `read_state_dict`.
        """
        self.path = expanded(path)
        with _refusing(self.path), contextlib.ExitStack() as stack:
            file = stack.enter_context(open(self.path, "rb"))
            value, self._fetch = _content(file)
            if isinstance(value, dict) and isinstance(value.get(STATE_DICT), dict):
                value = value[STATE_DICT]
            if isinstance(value, dict) and value and all(map(_is_of_names, value.values())):
                value = {
                    f"{part}.{name}": tensor
                    for part, tensors in value.items()
                    for name, tensor in tensors.items()
                }
            self._tensors = _tensors(value)
            self._close = stack.pop_all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return self._tensors[name].shape

    def read(self, name: str) -> npt.NDArray[Any]:
        """A tensor in its own type, read-only.

        Raises:
          UserError: a corrupt file.
        """
        tensor = self._tensors[name]
        with _refusing(self.path):
            return _view(tensor, {tensor.storage.key: self._fetch(tensor.storage)})

    def close(self) -> None:
        """Closes the file."""
        self._close.close()


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Raises UserError for whatever a file that is no state_dict leads to."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"found no file at {path}; expected PyTorch weights, usually .pth; check the path"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot open {path} ({error.strerror or error}); expected a file of PyTorch weights; "
            "check the path"
        ) from error
    except Unreadable as error:
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


def _content(file: BinaryIO) -> _Content:
    size = os.fstat(file.fileno()).st_size
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        return _of_zip(file, size)
    if start[:1] == b"\x80":
        return _of_legacy(file, size)
    raise Unreadable("it has neither of PyTorch's formats")


def _of_zip(file: BinaryIO, size: int) -> _Content:
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Unreadable("it is a zip file without one data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise Unreadable("its entries are compressed, which torch.save never does")
    (root,) = roots
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
        raise Unreadable("its numbers are big-endian")

    storages: dict[str, Storage] = {}
    with archive.open(f"{root}data.pkl") as pickled:
        value = follow(pickled, storages)
    _check_total(storages, size)
    checked: set[str] = set()

    def fetch(storage: Storage) -> npt.NDArray[Any]:
        name = f"{root}data/{storage.key}"
        if name not in entries or entries[name].file_size != storage.bytes:
            raise Unreadable(f"its entry {name[:80]!r} is missing or of the wrong size")
        file.seek(entries[name].header_offset)
        header = _exactly(file, _LOCAL_HEADER)
        lengths = struct.unpack("<2H", header[-4:])  # of the name and of what follows it
        if header[:4] != b"PK\x03\x04":
            raise Unreadable(f"its entry {name[:80]!r} has no header")
        file.seek(sum(lengths), os.SEEK_CUR)
        numbers = _mapped(file, storage)
        if name not in checked:
            if zlib.crc32(numbers.view(np.uint8).data) != entries[name].CRC:
                raise Unreadable(f"its entry {name[:80]!r} is corrupt")
            checked.add(name)
        return numbers

    return _Content(value, fetch)


def _of_legacy(file: BinaryIO, size: int) -> _Content:
    storages: dict[str, Storage] = {}
    if follow(file, {}) != LEGACY_MAGIC:
        raise Unreadable("it is a pickle without PyTorch's magic number")
    if follow(file, {}) != LEGACY_VERSION:
        raise Unreadable(f"its format is not version {LEGACY_VERSION}")
    system = follow(file, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Unreadable("its numbers are big-endian")
    value = follow(file, storages)
    keys = follow(file, {})
    if sorted(keys) != sorted(storages):
        raise Unreadable("its list of storages does not match its tensors")
    _check_total(storages, size)

    places = {}
    for key in keys:
        storage = storages[key]
        if int.from_bytes(_exactly(file, 8), "little") != storage.length:
            raise Unreadable(f"its storage {key[:80]!r} has another length than declared")
        places[key] = file.tell()
        file.seek(storage.bytes, os.SEEK_CUR)
    if file.tell() > size:
        raise Unreadable("it is truncated")

    def fetch(storage: Storage) -> npt.NDArray[Any]:
        file.seek(places[storage.key])
        return _mapped(file, storage)

    return _Content(value, fetch)


def _exactly(file: BinaryIO, count: int) -> bytes:
    read = file.read(count)
    if len(read) != count:
        raise Unreadable("it is truncated")
    return read


def _mapped(file: BinaryIO, storage: Storage) -> npt.NDArray[Any]:
    """A storage's numbers at the file's position, mapped: its memory is given back when it goes."""
    if not storage.length:
        return np.empty(0, storage.dtype)
    place, size = file.tell(), os.fstat(file.fileno()).st_size
    if place + storage.bytes > size:
        raise Unreadable("it is truncated")
    return np.memmap(file, storage.dtype, "r", place, (storage.length,))


def _check_total(storages: Mapping[str, Storage], size: int) -> None:
    total = sum(storage.bytes for storage in storages.values())
    if total > size:
        raise Unreadable(f"its tensors need {total} bytes, but the file has {size}")


def _tensors(value: Any) -> dict[str, Tensor]:
    if isinstance(value, Skipped):
        raise Unreadable(f"it is a {_shown(value)}, not a dictionary of tensors")
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise Unreadable("it is not a dictionary of tensors")
    for name, tensor in value.items():
        if not isinstance(tensor, Tensor):
            kind = _shown(tensor) if isinstance(tensor, Skipped) else type(tensor).__name__
            raise Unreadable(
                f"its entry {name[:80]!r} is a {kind}, so that it is not a dictionary of tensors"
            )
    return value


def _is_of_names(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(name, str) for name in value)


def _shown(value: Skipped) -> str:
    return value.name.replace(" ", ".")[:80]


def _view(tensor: Tensor, content: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The tensor as a view of its storage, checked against the storage's length."""
    storage, offset, shape, strides = tensor
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= storage.length or math.prod(shape) > storage.length:
        raise Unreadable(f"a tensor of shape {str(shape)[:80]} is larger than its storage")
    steps = [step * storage.dtype.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(
        content[storage.key][offset:], shape, steps, writeable=False
    )
