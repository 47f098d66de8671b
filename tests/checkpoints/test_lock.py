"""Locks on file systems without flock."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from diffjax.checkpoints.lock import OWNER, lock
from diffjax.errors import UserError


@pytest.fixture
def no_flock(monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)


def test_a_file_stands_for_the_lock_and_goes_with_it(tmp_path, no_flock, caplog):
    with lock(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()
        with (
            pytest.raises(UserError, match=f"in use by process {os.getpid()}"),
            lock(tmp_path),
        ):
            pass
        assert (tmp_path / OWNER).exists()
    assert not (tmp_path / OWNER).exists()
    assert "has no flock (No locks available)" in caplog.text


def test_the_file_of_a_process_that_was_killed_is_taken_over(tmp_path, no_flock):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = {"host": socket.gethostname(), "process": ended.pid}
    (tmp_path / OWNER).write_text(json.dumps(owner))
    with lock(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("text", ['{"host": "elsewhere", "process": 1}', "", "{}"])
def test_a_file_of_another_host_or_an_unreadable_one_is_respected(tmp_path, no_flock, text):
    (tmp_path / OWNER).write_text(text)
    with pytest.raises(UserError, match=f"if that run is over, remove .*{OWNER}"), lock(tmp_path):
        pass
    assert (tmp_path / OWNER).read_text() == text


def test_other_errors_of_flock_are_not_swallowed(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), lock(tmp_path):
        pass
