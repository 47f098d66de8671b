"""Records that wait for room. The kernel refuses real writes: past a size no file may grow."""

import contextlib
import logging
import resource

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


def test_a_half_record_that_could_not_be_cut_off_is_before_the_next(tmp_path):
    path = tmp_path / "file"

    class Disk:
        """A file that, while the disk fails, takes half of a record and can't be truncated."""

        fails = False

        def __init__(self, path):
            self.file = path.open("ab", buffering=0)

        def write(self, data):
            if not self.fails:
                return self.file.write(data)
            if path.stat().st_size > 6:
                raise OSError(28, "No space left on device")
            return self.file.write(data[: len(data) // 2])

        def truncate(self, size):
            if self.fails:
                raise OSError(5, "Input/output error")
            return self.file.truncate(size)

        def fileno(self):
            return self.file.fileno()

        def close(self):
            self.file.close()

    appender = AppendFile(path, what="records", open_file=Disk)
    appender.append(b"first\n")
    Disk.fails = True
    appender.append(b"second\n")
    assert path.read_bytes() == b"first\nsec"
    Disk.fails = False
    appender.append(b"third\n")
    assert path.read_bytes() == b"first\nsecond\nthird\n"
    appender.close()
