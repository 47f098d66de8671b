"""metrics.jsonl, TensorBoard events and the progress lines."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from diffjax.errors import UserError
from diffjax.training import append_file
from diffjax.training.logs import MetricsLog, Progress, clock, read_rows
from tests.training.test_append_file import no_file_past


def masked_checksum(data):
    """TFRecord's: CRC-32C bit by bit, turned by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder):
    """The events of a folder, by the TFRecord framing: length, crc, payload, crc."""
    found = []
    for path in sorted((folder / "tensorboard").glob("events.*tfevents*")):
        data = path.read_bytes()
        while data:
            size, payload = int.from_bytes(data[:8], "little"), data[12:][: data[0] + 256 * data[1]]
            assert len(payload) == size < 2**16
            assert int.from_bytes(data[8:12], "little") == masked_checksum(data[:8])
            assert int.from_bytes(data[12 + size :][:4], "little") == masked_checksum(payload)
            found.append(Event.FromString(payload))
            data = data[16 + size :]
    return found


def test_the_checksum_is_that_of_the_rfc():
    crc = masked_checksum(b"123456789") - 0xA282EAD8 & 0xFFFFFFFF
    assert (crc << 15 | crc >> 17) & 0xFFFFFFFF == 0xE3069283


def test_rows_go_to_the_file_at_once_and_to_tensorboard(tmp_path):
    log = MetricsLog(tmp_path, start=0)
    log.write({"step": 1, "loss": 0.5})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    shown = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    log.image("samples", shown, step=1)
    log.close()
    assert events(tmp_path)[0].file_version == "brain.Event:2"  # which TensorBoard asks for
    values = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert (1, "loss", 0.5) in values
    (image,) = [v.image for e in events(tmp_path) for v in e.summary.value if v.tag == "samples"]
    found = Image.open(io.BytesIO(image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(found), shown)


def test_a_cut_off_line_and_rows_from_the_future_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (1, 2, 3)))
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    log = MetricsLog(tmp_path, start=2)
    log.write({"step": 3, "loss": 2.0})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_rows(path)] == [(1, 1), (2, 1), (3, 2)]


def test_events_after_the_step_that_a_run_goes_on_from_are_hidden(tmp_path):
    log = MetricsLog(tmp_path, start=7)
    log.write({"step": 8, "loss": 2.0})
    log.close()
    (begun,) = [e for e in events(tmp_path) if e.HasField("session_log")]
    assert begun.step == 8 and begun.session_log.status == begun.session_log.START


def test_whole_rows_are_not_written_anew(tmp_path):
    """So that going on takes no room of a disk that is full."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n')
    before = path.stat()
    with no_file_past(10):
        log = MetricsLog(tmp_path, start=1)
    log.close()
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_full_disk_holds_up_nothing_and_its_end_is_an_error(tmp_path, caplog):
    with no_file_past(90):
        log = MetricsLog(tmp_path, start=0)
        for step in range(1, 200):  # more than any queue takes
            log.write({"step": step, "loss": 0.5})
            log.image("samples", np.zeros((4, 4, 1), np.uint8), step=step)
        with pytest.raises(UserError, match=r"metrics of steps 4 to 199 to .*: File too large; "):
            log.finish()
        log.close()
    assert [row["step"] for row in read_rows(log.path)] == [1, 2, 3]
    assert log.path.read_text().endswith("}\n")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3  # rows wait, events wait, events are lost
    assert "TensorBoard events are lost" in told[-1]


def test_rows_that_are_lost_are_told_when_something_else_ends_the_run(tmp_path, caplog):
    with no_file_past(0):
        log = MetricsLog(tmp_path, start=0)
        log.write({"step": 3, "loss": 0.5})
        log.write({"step": 5, "loss": 0.5})
        log.close()
    assert any("can't write the metrics of steps 3 to 5" in r.getMessage() for r in caplog.records)


def test_rows_wait_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(append_file, "LIMIT", 100)
    with no_file_past(0):
        log = MetricsLog(tmp_path, start=0)
        with pytest.raises(
            UserError, match=r"of steps 1 to 4 to .*: File too large; earlier rows and"
        ):
            for step in range(1, 99):
                log.write({"step": step, "loss": 0.5})
        log.close()


def test_a_line_for_the_user_is_not_worth_a_run():
    with open("/dev/full", "w") as out:
        progress = Progress(start=0, total=100, batch_size=10, out=out)
        progress.log("no room for this")
        progress.close()
        with contextlib.suppress(OSError):
            out.close()


def test_plain_lines_when_not_a_terminal():
    out = io.StringIO()
    progress = Progress(start=0, total=100, batch_size=10, out=out)
    progress.update(1, loss=1.5, images_per_second=0.5)
    progress.update(50, loss=0.25, images_per_second=20.0)
    progress.log("hello")
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
