"""Where the accelerator can't be had, one line says why and what would help."""

import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import pytest

from diffjax import accelerator
from diffjax.accelerator import library
from diffjax.errors import UserError
from diffjax.models.ops import XLA


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with nothing in it, for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load.cache_clear()
    yield tmp_path
    library.load.cache_clear()


def test_auto_falls_back_on_xla_and_says_why(
    empty_cache: Path, native_library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = accelerator.auto()
    assert kernels.ops is XLA
    assert kernels.line.count("\n") == 0
    assert "not built" in kernels.line and "python -m diffjax.accelerator" in kernels.line
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert accelerator.auto() == accelerator.xla()  # no advice that would be of no use
    with pytest.raises(UserError, match="gpu"):
        accelerator.onednn()


def test_without_onednn(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    for function in (accelerator.build, accelerator.load):
        with pytest.raises(UserError, match=r"oneDNN is not installed: pip install"):
            function()
    assert list(empty_cache.rglob("*")) == []


def test_on_another_machine(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(UserError, match="x86-64, not Linux on aarch64"):
        accelerator.build()


def test_without_a_compiler(
    empty_cache: Path, native_library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no-such-compiler was found: install one"):
        accelerator.build()
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install g"):
        accelerator.build()


def test_a_compiler_that_fails_leaves_nothing(
    empty_cache: Path, native_library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = empty_cache / "cxx"
    script.write_text("#!/bin/sh\necho 'x.cc:1: error: unknown standard c++20' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(UserError, match=r"error: unknown standard c\+\+20: expected a C"):
        accelerator.build()
    assert not any(path.is_file() for path in (empty_cache / "diffjax").rglob("*"))


def test_a_cache_that_cannot_be_written(
    native_library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "diffjax").mkdir()
    (tmp_path / "diffjax" / "accelerator").touch()  # no folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        accelerator.build()


def test_a_broken_library_is_named(empty_cache: Path, native_library: str) -> None:
    path = library.location()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF broken")
    with pytest.raises(UserError, match=f"{path.name} can't be loaded"):
        accelerator.load()


def test_the_command(native_library: str) -> None:
    command = [sys.executable, "-m", "diffjax.accelerator"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert native_library in done.stdout
