"""metrics.jsonl, TensorBoard events and the progress lines."""

import io
import json

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from diffjax.training.logs import MetricsLog, Progress, clock, read_rows


def events(folder):
    """The events of a folder, by the TFRecord framing: length, crc, payload, crc."""
    found = []
    for path in sorted((folder / "tensorboard").glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_rows_go_to_the_file_at_once_and_to_tensorboard(tmp_path):
    log = MetricsLog(tmp_path, start=0)
    log.write({"step": 1, "loss": 0.5})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    log.image("samples", np.zeros((4, 4, 1), np.uint8), step=1)
    log.close()
    values = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert (1, "loss", 0.5) in values
    assert any(tag == "samples" for _, tag, _ in values)


def test_a_cut_off_line_and_rows_from_the_future_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (1, 2, 3)))
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    log = MetricsLog(tmp_path, start=2)
    log.write({"step": 3, "loss": 2.0})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_rows(path)] == [(1, 1), (2, 1), (3, 2)]


def test_plain_lines_when_not_a_terminal():
    out = io.StringIO()
    progress = Progress(start=0, total=100, batch_size=10, out=out)
    progress.update(1, loss=1.5, images_per_second=0.5)
    progress.update(50, loss=0.25, images_per_second=20.0)
    progress.say("hello")
    progress.close()
    assert out.getvalue().splitlines() == [
        "step 1/100  loss 1.5000  after 20.0 s",
        "step 50/100  loss 0.2500  20 images/s  0:25 left",
        "hello",
    ]


def test_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    progress = Progress(start=10, total=100, batch_size=10, out=out)
    progress.update(50, loss=0.25, images_per_second=20.0)
    progress.close()
    shown = out.getvalue()
    assert "50/100" in shown and "loss 0.2500, 20 images/s" in shown


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61, "1:01"), (3600, "1:00:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text
