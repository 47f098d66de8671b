"""Every test of the data room runs in a home of its own and without a network."""

from pathlib import Path

import pytest

from diffjax.data import tfds_sets


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(urls: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(tfds_sets, "check_reachable", unreachable)
