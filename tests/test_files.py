"""Paths as they are given, the cache folder, and file systems that lack something."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from diffjax import files
from diffjax.errors import UserError


def test_home_and_variables_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert files.expanded("~/runs") == Path("/home/ada/runs")
    assert files.expanded("$SCRATCH/${HOME}/a") == Path("/scratch//home/ada/a")
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(UserError, match="environment variable SCRATCH is not set"):
        files.expanded("${SCRATCH}/runs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$SCRATCH").mkdir()
    assert files.expanded("$SCRATCH") == Path("$SCRATCH")


def _fresh_cache_folder():
    files._writable.cache_clear()
    return files.cache_folder()


def test_the_cache_is_where_it_can_be_written(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _fresh_cache_folder() == tmp_path / "cache" / "diffjax"
    temporary = tmp_path / f"diffjax-{os.getuid()}"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    caplog.set_level("INFO", logger="diffjax")
    assert _fresh_cache_folder() == files.cache_folder() == temporary
    assert caplog.text.count(f"files are cached in {temporary}") == 1

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    assert _fresh_cache_folder() == temporary


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_fsync_is_written_to(monkeypatch, tmp_path, number):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    files.atomic_write(tmp_path / "a", lambda file: file.write(b"whole"))
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_an_error_of_fsync_that_loses_data_is_raised(monkeypatch, tmp_path):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.atomic_write(tmp_path / "a", lambda file: file.write(b"new"))
    assert (tmp_path / "a").read_bytes() == b"old"
