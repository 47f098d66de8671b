"""Our solvers against those of diffusers and k-diffusion: same noise levels and noise, float64.

k-diffusion needs `pip install --no-deps k-diffusion`: its sampling.py alone is loaded.
"""

import jax
import numpy as np
import pytest

from benchmarks.samplers import same_numbers
from benchmarks.samplers.ours import OURS, STOCHASTIC


@pytest.fixture(scope="module")
def peers():
    with jax.enable_x64(True):
        yield same_numbers.peers()


@pytest.mark.parametrize("clean", [True, False], ids=["to clean data", "to noise"])
@pytest.mark.parametrize(
    "pair",
    same_numbers.PAIRS,
    ids=[f"{pair.package}, {pair.theirs}" for pair in same_numbers.PAIRS],
)
def test_same_numbers(pair, clean, peers):
    allowed = pair.to_clean if clean else pair.to_noise
    if (pair.package, pair.theirs) not in peers:
        pytest.skip(f"{pair.package} is not installed")
    if allowed is None:
        pytest.skip(pair.why)
    found = same_numbers.difference(pair, peers[pair.package, pair.theirs], clean=clean)
    assert np.isfinite(found) and found <= allowed


def test_differences_are_explained_and_nothing_else_is():
    for pair in same_numbers.PAIRS:
        larger = any(a is None or a > same_numbers.SAME for a in (pair.to_clean, pair.to_noise))
        assert larger == bool(pair.why), pair.theirs


def test_every_peer_is_in_a_pair(peers):
    paired = {(pair.package, pair.theirs) for pair in same_numbers.PAIRS}
    assert set(peers) <= paired
    assert {pair.ours for pair in same_numbers.PAIRS} <= {
        *(solver.name for solver in (*OURS, *STOCHASTIC)), "ddim_inversion"
    }  # fmt: skip
