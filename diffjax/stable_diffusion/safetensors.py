"""A reader of safetensors files whose tensors stay on disk until they are used.

A file is 8 bytes, the length of a JSON header; the header, which has for each tensor its type, its
shape and where its bytes begin and end; and the bytes, in C order, little-endian. It is mapped into
memory, so that a tensor, or a part of one, is read when it is copied. The library `safetensors`
has no NumPy arrays of bfloat16.
"""

import json
import math
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffjax.errors import UserError

_DTYPES: dict[str, Any] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16, "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
# The format's own limit.
MOST_HEADER_BYTES = 100_000_000


class Tensor(NamedTuple):
    """A tensor of a file.

    Attributes:
      path: the file.
      name: of the tensor in it.
      mapped: the whole file.
      start: of the tensor's bytes in it.
      dtype, shape: as stored.
    """

    path: Path
    name: str
    mapped: mmap.mmap
    start: int
    dtype: Any
    shape: tuple[int, ...]

    @property
    def array(self) -> np.ndarray:
        """The tensor, read-only; nothing of it is read yet."""
        count = math.prod(self.shape)
        flat = np.frombuffer(self.mapped, self.dtype, count, self.start) if count else np.empty(0)
        return flat.astype(self.dtype, copy=False).reshape(self.shape)

    def forget(self) -> None:
        """Frees the memory of what was read of the tensor, which can be read again."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = self.start // mmap.PAGESIZE * mmap.PAGESIZE
        end = self.start + math.prod(self.shape) * self.dtype.itemsize
        if end > first:
            self.mapped.madvise(mmap.MADV_DONTNEED, first, end - first)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
      UserError: no such file, or one that is cut off or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(MOST_HEADER_BYTES, size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        return {
            name: _tensor(path, name, mapped, 8 + length, entry) for name, entry in header.items()
        }
    except FileNotFoundError as error:
        raise UserError(
            f"found no {path.name} in {path.parent}; expected that part of the weights; download it"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"cannot read {path} ({_reason(error)}); expected a whole safetensors file; download "
            "it again"
        ) from error


def _tensor(path: Path, name: str, mapped: mmap.mmap, begin: int, entry: dict[str, Any]) -> Tensor:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} is of the type {entry['dtype']}")
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    if begin + end > len(mapped):
        raise ValueError(f"it ends before {name}")
    if start < 0 or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {end - start} bytes for {shape}")
    return Tensor(path, name, mapped, begin + start, dtype, shape)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
