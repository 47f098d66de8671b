"""TensorBoard's event files, written without a thread.

A full disk ends the thread of tensorboardX's writer; its queue then fills, and the run hangs. Here
records go through `AppendFile`, as rows of metrics do.
"""

import functools
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from diffjax.training.append_file import AppendFile

VERSION = "brain.Event:2"


class EventWriter:
    """Writes the events of a run from a step on to a new file in a folder.

    If the disk is full and so is the buffer, events are dropped; metrics.jsonl has the same values.
    """

    def __init__(self, folder: Path, *, start: int) -> None:
        """The file is opened at the first event.

        Args:
          folder: TensorBoard's log directory.
          start: the step before the first; TensorBoard hides older files' events after it.
        """
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendFile(folder / name, what="TensorBoard events")
        self._start = start
        self._dropped = 0

    @property
    def lost(self) -> int:
        """Number of events dropped or still buffered."""
        return self._dropped + len(self._file.waiting)

    def scalars(self, values: dict[str, float], *, step: int) -> None:
        """Writes scalars by name."""
        value = self._proto.Summary.Value
        self._summary([value(tag=name, simple_value=x) for name, x in values.items()], step)

    def image(self, name: str, picture: Any, *, step: int) -> None:
        """Writes a uint8 (H, W, C) picture."""
        from tensorboardX.summary import image

        self._summary(image(name, picture, dataformats="HWC").value, step)

    def close(self) -> None:
        """Tries a last time to write buffered events."""
        self._file.close()

    @functools.cached_property
    def _proto(self) -> Any:
        # Imported at the first event: tensorboardX imports torch if it is installed, which takes
        # seconds.
        from tensorboardX.proto import event_pb2, summary_pb2

        event = event_pb2.Event
        self._add(event(file_version=VERSION, wall_time=time.time()))
        if self._start:
            begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(event(step=self._start + 1, session_log=begun, wall_time=time.time()))
        self._event = event
        return summary_pb2

    def _summary(self, values: Any, step: int) -> None:
        summary = self._proto.Summary(value=values)
        self._add(self._event(step=step, summary=summary, wall_time=time.time()))

    def _add(self, event: Any) -> None:
        try:
            self._file.append(_record(event.SerializeToString()))
        except OSError:
            self._dropped += 1


def _record(data: bytes) -> bytes:
    """TFRecord's framing: length, its checksum, the data, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(sums) + data + next(sums)
