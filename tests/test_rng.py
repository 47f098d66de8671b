"""Random streams: reproducible, unrelated to each other, the same on any layout."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import rng


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_streams_steps_and_seeds_give_different_keys():
    keys = [
        bits(rng.stream(seed, name, step))
        for seed in (0, 1, 2**31 - 1)
        for name in ("noise", "times", "dropout", "sample_start")
        for step in range(50)
    ]
    assert len(set(keys)) == len(keys)


def test_a_stream_is_the_same_in_another_process_and_under_jit():
    # Python's own hash of a string differs between processes: names must not go through it.
    code = (
        "import jax; from diffjax import rng; print(jax.random.key_data(rng.stream(3, 'noise', 5)))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = rng.stream(3, "noise", 5)
    assert other.stdout.strip() == str(jax.random.key_data(here))
    traced = jax.jit(lambda seed, step: rng.stream(seed, "noise", step))(3, 5)
    assert bits(traced) == bits(here)


def test_examples_draws_do_not_depend_on_the_layout():
    key = rng.stream(0, "noise")
    draw = lambda k: jax.random.normal(k, (2, 3))  # noqa: E731
    whole = rng.per_example(key, jnp.arange(8), draw)
    assert whole.shape == (8, 2, 3)
    halves = [rng.per_example(key, i, draw) for i in jnp.arange(8).reshape(2, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert len(np.unique(whole)) == whole.size


def test_neighbouring_examples_are_uncorrelated():
    n = 2000
    draws = np.asarray(
        rng.per_example(rng.stream(1, "noise"), jnp.arange(3), lambda k: jax.random.normal(k, (n,)))
    )
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 5 / np.sqrt(n)
