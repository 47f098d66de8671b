"""Records that wait for room. The kernel refuses real writes: past a size no file may grow."""

import contextlib
import logging
import resource

import pytest

from diffjax.training import append_file
from diffjax.training.append_file import AppendFile


@contextlib.contextmanager
def no_file_past(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def records(count):
    return [f"record {number}\n".encode() for number in range(count)]


def test_what_did_not_fit_follows_in_order_when_there_is_room(tmp_path, caplog):
    caplog.set_level(logging.INFO, "diffjax")
    path = tmp_path / "folder" / "file"
    appender = AppendFile(path, what="records")
    with no_file_past(25):  # two records of nine bytes, and a part of the third
        for record in records(5):
            appender.append(record)
        assert path.read_bytes() == b"".join(records(2))  # no half of one
        assert list(appender.waiting) == records(5)[2:]
        assert appender.flush().strerror == "File too large"
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    for part in (str(path), "records", "File too large"):
        assert part in told.getMessage()
    appender.append(records(6)[5])
    assert path.read_bytes() == b"".join(records(6)) and not appender.waiting
    assert appender.flush() is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_each_time_that_the_disk_fills_is_told_once(tmp_path, caplog):
    appender = AppendFile(tmp_path / "file", what="records")
    for size in (25, 40):
        with no_file_past(size):
            for record in records(5):
                appender.append(record)
        assert appender.flush() is None
    assert (tmp_path / "file").read_bytes() == b"".join(records(5) * 2)
    assert [record.levelname for record in caplog.records].count("WARNING") == 2


def test_a_half_record_that_could_not_be_cut_off_is_before_the_next(tmp_path, monkeypatch):
    path = tmp_path / "file"
    appender = AppendFile(path, what="records")
    appender.append(b"first\n")
    real = appender._file

    class Failing:
        """Takes half of a record, then nothing, and can't be made shorter."""

        def write(self, data):
            if path.stat().st_size > 6:
                raise OSError(28, "No space left on device")
            return real.write(data[: len(data) // 2])

        def truncate(self, size):
            raise OSError(5, "Input/output error")

    appender._file = Failing()
    appender.append(b"second\n")
    assert path.read_bytes() == b"first\nsec"
    appender._file = real
    appender.append(b"third\n")
    assert path.read_bytes() == b"first\nsecond\nthird\n"
    appender.close()


def test_no_more_waits_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(append_file, "LIMIT", 40)
    appender = AppendFile(tmp_path / "file", what="records")
    with no_file_past(0):
        for record in records(4):
            appender.append(record)
        with pytest.raises(OSError, match="File too large"):
            appender.append(records(5)[4])
        assert list(appender.waiting) == records(4)
    appender.append(b"last\n")  # the limit is of what waits, not of the file
    assert (tmp_path / "file").read_bytes() == b"".join(records(4)) + b"last\n"


def test_a_file_that_can_not_be_opened_yet(tmp_path):
    blocked = tmp_path / "folder"
    blocked.write_bytes(b"")
    appender = AppendFile(blocked / "file", what="records")
    appender.append(b"first\n")
    assert appender.flush() is not None
    blocked.unlink()
    appender.append(b"second\n")
    assert (blocked / "file").read_bytes() == b"first\nsecond\n"


def test_closing_leaves_no_descriptor_and_tells_what_is_lost(tmp_path):
    appender = AppendFile(tmp_path / "file", what="records")
    appender.append(b"kept\n")
    with no_file_past(0):
        appender.append(b"lost\n")
        appender.close()
    assert list(appender.waiting) == [b"lost\n"]
    assert (tmp_path / "file").read_bytes() == b"kept\n"
