"""The prior's measure: ranks among held-out pictures."""

import numpy as np

from benchmarks.prior import ranks, summary, table

RNG = np.random.default_rng(0)


def test_ranks_of_known_answers():
    true = RNG.normal(size=(50, 8))
    assert ranks(3 * true, true).tolist() == [1] * 50  # lengths are of no consequence
    assert ranks(-true, true).tolist() == [50] * 50
    # Two pictures whose embeddings are swapped: each other's come first.
    swapped = true.copy()
    swapped[[0, 1]] = true[[1, 0]]
    found = ranks(swapped, true)
    assert (found[:2] > 1).all() and (found[2:] == 1).all()


def test_guessing_is_chance():
    guesses = np.concatenate(
        [ranks(RNG.normal(size=(101, 8)), RNG.normal(size=(101, 8))) for _ in range(40)]
    )
    error = 101 / 12**0.5 / len(guesses) ** 0.5
    assert abs(guesses.mean() - 51) < 5 * error


def test_a_summary_has_what_the_table_shows():
    true = RNG.normal(size=(50, 8))
    near = summary(true + 0.3 * RNG.normal(size=true.shape), true)
    far = summary(true + 3.0 * RNG.normal(size=true.shape), true)
    assert near["mean rank"] < far["mean rank"] and near["cosine"] > far["cosine"]
    assert near["first"] <= near["among five"] <= 1
    lines = table("of 50", {"near": near, "far": far}, ("mean rank", "first")).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| near | ")
