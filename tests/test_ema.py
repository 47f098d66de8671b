"""Averages of parameters against TensorFlow's definition and sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import ema


def test_weights_of_past_values():
    # Feeding an impulse reads off each step's weight: they must be a decaying geometric series.
    n, decay = 20, 0.8
    weights = []
    for when in range(n):
        average = {"w": jnp.zeros(2)}
        for step in range(n):
            params = {"w": jnp.full(2, float(step == when))}
            average = ema.update(average, params, decay=jnp.float32(decay))
        weights.append(float(average["w"][0]))
    np.testing.assert_allclose(np.array(weights[1:]) / weights[:-1], 1 / decay, rtol=1e-5)
    assert sum(weights) == pytest.approx(1 - decay**n, rel=1e-5)


def test_a_constant_is_its_own_average_and_the_ends_of_decay():
    params, start = (
        {"a": jnp.full(3, 0.1), "b": [jnp.ones(())]},
        {"a": jnp.zeros(3), "b": [jnp.zeros(())]},
    )
    same = ema.update(params, params, decay=0.99)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    jax.tree.map(np.testing.assert_array_equal, ema.update(start, params, decay=0.0), params)
    jax.tree.map(np.testing.assert_array_equal, ema.update(start, params, decay=1.0), start)


def test_trees_of_another_structure_are_refused():
    with pytest.raises(ValueError, match=r"(?i)key|structure|mismatch"):
        ema.update({"a": jnp.zeros(1)}, {"b": jnp.zeros(1)}, decay=0.5)


def test_leaves_keep_their_type():
    average = ema.update(
        {"a": jnp.zeros(2, jnp.bfloat16)}, {"a": jnp.ones(2, jnp.bfloat16)},
        decay=ema.warmed_up_decay(3, decay=0.9),
    )  # fmt: skip
    assert average["a"].dtype == jnp.bfloat16


def test_warm_up():
    steps = np.arange(20_000)
    decay = jax.jit(jax.vmap(lambda s: ema.warmed_up_decay(s, decay=0.999)))(steps)
    assert decay[0] == pytest.approx(0.1)
    assert np.all(np.diff(decay) >= 0) and decay[-1] == pytest.approx(0.999)
    # It crosses 0.999 at (1 + n) / (10 + n) = 0.999, n = 8990.
    assert decay[8988] < 0.999 * (1 - 1e-8) and decay[8995] == pytest.approx(0.999, rel=1e-7)


def test_a_young_average_forgets_its_start():
    average = {"w": jnp.float32(100.0)}
    for step in range(100):
        decay = ema.warmed_up_decay(step, decay=0.9999)
        average = ema.update(average, {"w": jnp.float32(1.0)}, decay=decay)
    assert float(average["w"]) == pytest.approx(1.0, abs=1e-3)
