"""Bars and lines of long waits, as a terminal and a log file get them."""

import contextlib
import fcntl
import io
import logging
import os
import pty
import struct
import termios
import time

import pytest

from diffjax import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(progress, "QUIET_S", 0.05)
    monkeypatch.setattr(progress, "TICK_S", 0.02)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)


@pytest.fixture
def at_info():
    logger = logging.getLogger("diffjax")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(before)


@pytest.fixture
def at_warning():
    logger = logging.getLogger("diffjax")
    before = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(before)


def count_slowly(what="counting", parts=6, seconds=0.03):
    with progress.Bar(what, parts, unit="part") as bar:
        for part in range(parts):
            time.sleep(seconds)
            bar(part + 1, note=f"at {part}")


def test_a_terminal_has_a_bar_that_goes(monkeypatch, at_info):
    monkeypatch.setattr("sys.stderr", out := Terminal())
    count_slowly(parts=10, seconds=0.1)
    drawn = out.getvalue().split("\r")
    assert any("counting" in text and "/10" in text and "at " in text for text in drawn)
    assert not drawn[-1].strip() and "\n" not in out.getvalue()


def test_a_terminal_has_no_bar_of_what_is_quick_or_done_at_once(monkeypatch, at_info):
    monkeypatch.setattr("sys.stderr", out := Terminal())
    count_slowly(seconds=0)
    with progress.Bar("counting", 4, at_once=4) as bar:
        time.sleep(0.2)
        bar(4)
    assert "counting" not in out.getvalue()


def test_a_part_that_takes_long_has_a_bar_whose_clock_runs(monkeypatch, at_info):
    monkeypatch.setattr("sys.stderr", out := Terminal())
    with progress.Bar("counting", 2):
        time.sleep(1.3)
    assert "0/2 [00:00" in out.getvalue() and "0/2 [00:01" in out.getvalue()


def test_a_terminal_without_a_size_has_a_bar():
    """In a container and in some CI a terminal has 0 columns, where tqdm alone shows nothing."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    with os.fdopen(other, "w") as terminal:
        bar = progress.terminal_bar(file=terminal, total=3)
        bar.update(2)
        bar.close()
    shown = b""
    with contextlib.suppress(OSError):  # the end, once the other side is closed
        while part := os.read(main, 4096):
            shown += part
    os.close(main)
    assert b"2/3" in shown


def test_a_log_has_lines_and_no_carriage_returns(capsys, caplog, at_info):
    count_slowly()
    assert not capsys.readouterr().err.count("\r")
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("counting: ") and " of 6, 0 s, at " in line for line in lines)


def test_other_processes_and_libraries_show_nothing(monkeypatch, caplog, at_warning):
    monkeypatch.setattr("sys.stderr", out := Terminal())
    count_slowly()
    with progress.note_if_long("compiling"):
        time.sleep(0.15)
    assert not out.getvalue() and not caplog.records


def test_a_bar_goes_at_an_error(monkeypatch, at_info):
    monkeypatch.setattr("sys.stderr", out := Terminal())
    with pytest.raises(KeyboardInterrupt), progress.Bar("counting", 4) as bar:
        time.sleep(0.2)
        bar(1)
        time.sleep(0.2)
        bar(2)
        raise KeyboardInterrupt
    assert "counting" in out.getvalue() and not out.getvalue().split("\r")[-1].strip()


def test_a_long_wait_is_noted_and_a_short_one_is_not(caplog, at_info):
    with progress.note_if_long("compiling a short program"):
        pass
    with progress.note_if_long("compiling a long program"):
        time.sleep(0.3)
    time.sleep(0.1)
    assert [record.getMessage() for record in caplog.records] == ["compiling a long program"]
