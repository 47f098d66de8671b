"""TensorBoard's event files, without a thread.

tensorboardX's own writer has one, which a full disk ends: its queue then fills, and the run waits
for it for ever. Here records go through `AppendFile`, as rows of metrics do.
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
    """The events of a run from a step on, in a new file of a folder.

    Those that a full disk keeps waiting too long are dropped: metrics.jsonl has the same numbers.
    """

    def __init__(self, folder: Path, *, start: int) -> None:
        """Writes nothing yet.

        Args:
          folder: where TensorBoard looks.
          start: the step before the first; of events after it, older files' are hidden.
        """
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendFile(folder / name, what="TensorBoard events")
        self._start = start
        self._dropped = 0

    @property
    def lost(self) -> int:
        """Events that are not in the file, if this was the end."""
        return self._dropped + len(self._file.waiting)

    def scalars(self, values: dict[str, float], *, step: int) -> None:
        """Numbers by name."""
        value = self._proto.Summary.Value
        self._summary([value(tag=name, simple_value=x) for name, x in values.items()], step)

    def image(self, name: str, picture: Any, *, step: int) -> None:
        """A uint8 (H, W, C) picture."""
        from tensorboardX.summary import image

        self._summary(image(name, picture, dataformats="HWC").value, step)

    def close(self) -> None:
        """Tries a last time to write what waits."""
        self._file.close()

    @functools.cached_property
    def _proto(self) -> Any:
        # Not before there is something to write: tensorboardX imports torch where there is one,
        # which takes seconds in which a first step can be computed.
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
