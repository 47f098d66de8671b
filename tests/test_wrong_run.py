"""What `diffjax.main.run` says of wrong arguments, as in a notebook: one line that names them."""

import pytest
from ml_collections import ConfigDict

from diffjax.main import run
from tests.messages import refuses

CASES = [
    *[(dict(config=config), "config") for config in (None, 3, "digits.py", {}, [1], run)],
    (dict(config={"data": {"name": "digits"}}), "config"),
    (dict(config=ConfigDict({"nosuch": 1})), "nosuch"),
    *[(dict(workdir=path), "workdir") for path in (None, 3, b"run", ["run"])],
    *[(dict(mode=mode), "mode") for mode in (None, 3, "trian", ["train"], b"train")],
    *[(dict(out=path, mode="export"), "out") for path in (3, b"run", ["run"])],
    (dict(out="there"), "--out"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "word"), CASES)
def test_a_wrong_argument_is_named(tiny_config, tmp_path, monkeypatch, changes, word):
    monkeypatch.chdir(tmp_path)
    call = {"config": tiny_config, "workdir": tmp_path / "run", "mode": "train", **changes}
    refuses(lambda: run(**call), word)
    assert not list(tmp_path.iterdir())
