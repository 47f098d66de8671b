"""The picture of a bound's terms: it is written, and shows what it was given."""

import numpy as np
import pytest
from PIL import Image

from diffjax.figures import plot_bound


def ink(path):
    return (np.asarray(Image.open(path).convert("L")) < 200).mean()


@pytest.fixture
def continuous():
    log_snr = np.linspace(13, -6, 400).reshape(50, 8)
    return {"log_snr": log_snr, "bits_per_log_snr": np.exp(-((log_snr - 5) ** 2) / 8)}


def test_terms_alone_and_beside_schedules(tmp_path, continuous):
    t = np.linspace(0, 1, 11)
    plot_bound(tmp_path / "one.png", continuous, title="3.1 bits/dim")
    plot_bound(
        tmp_path / "two.png", continuous, title="3.1 bits/dim",
        schedules={"learned": (t, 13 - 19 * t**2), "at the start": (t, 13 - 19 * t)},
    )  # fmt: skip
    one, two = (Image.open(tmp_path / f"{name}.png").size for name in ("one", "two"))
    assert two[0] == 2 * one[0] and two[1] == one[1]
    assert ink(tmp_path / "one.png") > 0.02


def test_a_chains_steps(tmp_path):
    steps = np.geomspace(1, 1e-4, 30) * np.ones((5, 1))
    plot_bound(tmp_path / "steps.png", {"steps": steps}, title="")
    assert ink(tmp_path / "steps.png") > 0.005


def test_more_bits_are_more_ink(tmp_path, continuous):
    narrow = dict(continuous, bits_per_log_snr=continuous["bits_per_log_snr"] ** 20)
    plot_bound(tmp_path / "wide.png", continuous, title="")
    plot_bound(tmp_path / "narrow.png", narrow, title="")
    assert ink(tmp_path / "wide.png") > ink(tmp_path / "narrow.png")
