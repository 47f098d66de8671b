"""Random access to TFRecord files, without TensorFlow.

TFRecord is TFDS's default format. A record is

    uint64 length | uint32 masked CRC of the length | the bytes | uint32 masked CRC of the bytes

in little-endian order (tensorflow/core/lib/io/record_writer.h). A pass over the lengths gives
every record's position. The CRCs are not checked: Python's standard library lacks CRC-32C.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from typing import Any

_HEADER = struct.Struct("<Q4x")
_FOOTER_BYTES = 4


class TFRecordFiles:
    """The records of some files, or parts of files, as one list of bytes."""

    def __init__(self, instructions: Sequence[Any]) -> None:
        """Indexes the records.

        Args:
          instructions: TFDS's file instructions: `filename`, `skip` (records to skip) and `take`
            (records to keep, -1 for all).

        Raises:
          ValueError: a file ends within a record, or has fewer records than expected.
        """
        self._places: list[tuple[mmap.mmap, int, int]] = []
        for instruction in instructions:
            with open(instruction.filename, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            places = []
            position = 0
            while position < len(data):
                if position + _HEADER.size > len(data):
                    raise ValueError(f"{instruction.filename} ends within a record")
                (length,) = _HEADER.unpack_from(data, position)
                start = position + _HEADER.size
                position = start + length + _FOOTER_BYTES
                if position > len(data):
                    raise ValueError(f"{instruction.filename} ends within a record")
                places.append((data, start, length))
            skip, take = instruction.skip, instruction.take
            kept = places[skip:] if take < 0 else places[skip : skip + take]
            if take >= 0 and len(kept) < take:
                raise ValueError(
                    f"{instruction.filename} has {len(places)} records; expected {skip + take}"
                )
            self._places.extend(kept)

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._places)

    def __getitems__(self, rows: Sequence[int]) -> list[bytes]:
        """Returns some records' bytes."""
        return [self[row] for row in rows]

    def __getitem__(self, row: int) -> bytes:
        """Returns one record's bytes."""
        data, start, length = self._places[row]
        return data[start : start + length]
