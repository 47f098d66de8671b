"""Importance sampling of times: a FIFO in plain Python, frequencies, bias and variance."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffjax import importance_sampling as sampling

T, N = 12, 20_000
KEY = jax.random.key(0)
SAMPLE = jax.jit(sampling.sample, static_argnames="batch_size")
UPDATE = jax.jit(sampling.update)
# Losses that fall over three orders of magnitude, as those of the variational bound do.
SKEWED = 10.0 ** np.linspace(1, -2, T)


def full_history(sizes, spread=0.0, seed=0):
    """A full history of losses about the given sizes."""
    noise = np.random.default_rng(seed).normal(size=(len(sizes), 10))
    values = np.asarray(sizes)[:, None] * np.exp(spread * noise)
    return sampling.History(jnp.asarray(values, jnp.float32), jnp.full(len(sizes), 10, jnp.int32))


@jax.jit
def _one_of_many_batches(history):
    one = lambda key: sampling.sample(key, history, indices=jnp.array([5]), batch_size=8)  # noqa: E731
    return jax.vmap(one)(jax.random.split(KEY, N))


def draws(history):
    """N independent draws: the same example of N batches."""
    t, weight = _one_of_many_batches(history)
    return np.asarray(t)[:, 0], np.asarray(weight, np.float64)[:, 0]


@pytest.mark.parametrize("length", [3, 10])
def test_update_is_a_first_in_first_out_queue(length):
    rng = np.random.default_rng(length)
    queues = [collections.deque(maxlen=length) for _ in range(5)]
    history = sampling.empty(5, length=length)
    seen = np.zeros(5, int)
    for batch in range(8):
        # t = 2 several times in each batch, and in one of them more often than a queue is long.
        t = rng.choice([1, 2, 2, 3, 5] if batch < 6 else [2, 5], 16)
        losses = rng.normal(size=16).astype(np.float32)
        for one, loss in zip(t, losses, strict=True):
            queues[one - 1].append(loss)
            seen[one - 1] += 1
        history = UPDATE(history, jnp.asarray(t), jnp.asarray(losses))
        np.testing.assert_array_equal(history.count, seen)
        for row, queue in zip(np.asarray(history.values), queues, strict=True):
            np.testing.assert_array_equal(np.sort(row[: len(queue)]), np.sort(queue))
    assert seen[3] == 0 and seen[1] > 3 * length
    assert history.values.dtype == np.float32 and history.count.dtype == np.int32


def test_a_batch_is_the_same_as_its_losses_one_by_one():
    t, losses = np.array([3, 1, 3, 3, 2, 3]), np.arange(6.0)
    together = UPDATE(sampling.empty(3, length=2), t, losses)
    apart = sampling.empty(3, length=2)
    for one in zip(t.reshape(6, 1), losses.reshape(6, 1), strict=True):
        apart = UPDATE(apart, *one)
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_array_equal(a, b)


def test_losses_that_cannot_be_used_are_left_out():
    start = full_history(SKEWED)
    t = jnp.array([0, T + 1, -1, 4, 5, 6])
    losses = jnp.array([1.0, 1.0, 1.0, jnp.nan, jnp.inf, 7.0])
    changed = sampling.update(start, t, losses)
    np.testing.assert_array_equal(changed.count - start.count, np.eye(T, dtype=int)[5])
    differs = np.argwhere(np.asarray(changed.values != start.values))
    assert len(differs) == 1 and differs[0][0] == 5
    assert (changed.values == 7.0).sum() == 1


def test_no_gradient_flows_into_the_history():
    total = lambda x: sampling.update(sampling.empty(2), jnp.array([1]), x).values.sum()  # noqa: E731
    assert jax.jit(jax.grad(total))(jnp.ones(1)) == 0


def test_uniform_until_every_time_has_a_full_history():
    history = full_history(SKEWED)
    short = history._replace(count=history.count.at[7].set(9))
    np.testing.assert_allclose(sampling.probabilities(short), 1 / T, rtol=1e-6)
    p = np.asarray(sampling.probabilities(history))
    assert p[0] > 100 * p[-1]
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)


def test_probabilities_are_those_of_least_variance():
    """Among all p, by a direct search on the second moment of L_t / p_t."""
    values = np.random.default_rng(4).gamma(1.0, [[1.0], [3.0], [0.2]], (3, 10))
    history = sampling.History(jnp.asarray(values, jnp.float32), jnp.full(3, 10, jnp.int32))
    found = scipy.optimize.minimize(
        lambda a: np.sum(np.mean(values**2, 1) / scipy.special.softmax(a)), np.zeros(3), tol=1e-10
    )
    p = sampling.probabilities(history, uniform_share=1e-6)
    np.testing.assert_allclose(p, scipy.special.softmax(found.x), rtol=1e-3)


def test_probabilities_of_extreme_losses():
    zero = sampling.probabilities(full_history(np.zeros(T)))
    np.testing.assert_allclose(zero, 1 / T, rtol=1e-6)
    one = sampling.probabilities(full_history(np.eye(T)[2]), uniform_share=0.12)
    np.testing.assert_allclose(one, 0.01 + 0.88 * np.eye(T)[2], rtol=1e-5)
    small, large = (sampling.probabilities(full_history(SKEWED * s)) for s in (1e-25, 1e25))
    np.testing.assert_allclose(small, large, rtol=1e-5)


def test_sampled_frequencies():
    history = full_history(SKEWED, spread=0.5)
    t, weight = draws(history)
    assert t.min() >= 1 and t.max() <= T
    p = np.asarray(sampling.probabilities(history), np.float64)
    counts = np.bincount(t, minlength=T + 1)[1:]
    # A true law fails once in ten thousand seeds, and this seed is fixed.
    assert scipy.stats.chisquare(counts, N * p / p.sum()).pvalue > 1e-4
    np.testing.assert_allclose(weight, 1 / (T * p[t - 1]), rtol=1e-5)


def test_the_weighted_mean_loss_is_unbiased():
    # Losses that are not those of the history that p is made of.
    losses = np.random.default_rng(1).normal(size=T) + np.linspace(4, 2, T)
    t, weight = draws(full_history(10.0 ** np.linspace(0, -1, T)))
    estimates = weight * losses[t - 1]
    error = estimates.mean() - losses.mean()
    assert abs(error) < 4 * estimates.std() / np.sqrt(N)
    # The times that p prefers have other losses: without the weights it would be far off.
    assert abs(losses[t - 1].mean() - losses.mean()) > 0.3


def test_variance_falls_for_skewed_losses():
    seen = full_history(SKEWED, spread=0.3)
    t, weight = draws(seen)
    plain_t, plain_weight = draws(sampling.empty(T))
    np.testing.assert_allclose(plain_weight, 1, rtol=1e-6)
    weighted, plain = weight * SKEWED[t - 1], SKEWED[plain_t - 1]
    assert weighted.var() < 0.05 * plain.var()


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_holds_each_time_as_often_as_it_should_or_once_more(seed):
    n, history = 64, full_history(SKEWED, spread=0.3)
    indices = jnp.arange(n)
    t, _ = SAMPLE(jax.random.key(seed), history, indices=indices, batch_size=n)
    expected = n * np.asarray(sampling.probabilities(history))
    counts = np.bincount(t, minlength=T + 1)[1:]
    assert np.abs(counts - expected).max() < 1 + 1e-4
    assert t.dtype == np.int32


def test_draws_do_not_depend_on_how_the_batch_is_split():
    history, n = full_history(SKEWED), 16
    whole = SAMPLE(KEY, history, indices=jnp.arange(n), batch_size=n)
    parts = np.split(np.arange(n), 2)
    halves = [SAMPLE(KEY, history, indices=i, batch_size=n) for i in parts]
    for a, *b in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(a, np.concatenate(b))


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="T and length must be at least 1, not 0 and 10"):
        sampling.empty(0)
    with pytest.raises(ValueError, match="at least 1, not 5 and 0"):
        sampling.empty(5, length=0)
    with pytest.raises(ValueError, match=r"losses of shape \(3, 1\) must have the axes \(batch,\)"):
        sampling.update(sampling.empty(5), jnp.ones(3, int), jnp.ones((3, 1)))
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"uniform_share must be in \(0, 1\], not"):
            sampling.probabilities(sampling.empty(5), uniform_share=share)
