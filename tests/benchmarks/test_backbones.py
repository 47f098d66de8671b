"""The comparison of backbones, small: its rows, what it goes on from, and its page."""

import json

import numpy as np
import pytest

from benchmarks import backbones

pytestmark = pytest.mark.slow
FLAGS = [
    f"--flag=--config.{text}"
    for text in (
        "data.name=digits", "train.batch_size=8", "train.log_every=2", "train.warmup_steps=1",
        "model.width=48", "model.head_channels=24", "model.depth=2",
    )
]  # fmt: skip


def test_two_transformers_are_measured_once(tmp_path, own_caches, capsys, monkeypatch):
    # In place of a classifier, which would be trained.
    monkeypatch.setattr(backbones, "distance_to", lambda *sets: lambda images: images.mean())
    given = [
        f"--workdir={tmp_path}/work", f"--out={tmp_path}/out", "--minutes=0.001", "--trial=10",
        "--samples=20", "--batch=10", "--only", "DiT", "JiT",
    ]  # fmt: skip
    backbones.main([*given, *FLAGS])
    page = (tmp_path / "out" / "backbones.md").read_bytes()
    for name in ("dit", "jit"):
        folder = tmp_path / "work" / name
        plan = json.loads((folder / "plan.json").read_text())
        assert plan["steps"] == backbones.steps_for(0.001, plan["rate"], 8)
        with np.load(folder / "measured.npz") as row:
            assert row["images"] == 8 * plan["steps"] and row["samples"].shape == (10, 8, 8, 1)
            assert np.isfinite(row["distance"]).all() and row["memory"] > 0
    capsys.readouterr()
    backbones.main([*given, *FLAGS])
    assert (tmp_path / "out" / "backbones.md").read_bytes() == page
    assert "step" not in capsys.readouterr().err  # nothing was trained
    assert (tmp_path / "out" / "backbones.png").exists()
