"""Reconstructed averages against tracked ones, and their weights against sampled profiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from diffjax import ema, posthoc_ema
from diffjax.posthoc_ema import Profile

STORED = (0.05, 0.1)
STEPS, EVERY = 2000, 100
SNAPSHOTS = [Profile(step, w) for step in range(EVERY, STEPS + 1, EVERY) for w in STORED]


@functools.cache
def tracked(sigma_rel):
    """(STEPS, 64) the average of 64 random walks after every update, and the walks themselves."""
    walks = 30 + np.cumsum(np.random.default_rng(0).normal(size=(STEPS, 64)), axis=0)

    def step(average, inputs):
        i, params = inputs
        decay = ema.power_decay(i, sigma_rel=sigma_rel)
        return (ema.update(average, params, decay=decay),) * 2

    with jax.enable_x64(True):
        start = jnp.zeros(64)
        averages = jax.lax.scan(step, start, (jnp.arange(STEPS), jnp.asarray(walks)))[1]
    return np.asarray(averages), walks


def reconstruct(weights):
    stored = [tracked(profile.sigma_rel)[0][profile.step - 1] for profile in SNAPSHOTS]
    return posthoc_ema.combine(stored, weights)


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


@pytest.mark.parametrize(
    ("wanted", "share"),
    [(Profile(STEPS, 0.075), 0.002), (Profile(STEPS, 0.15), 0.002), (Profile(STEPS, 0.2), 0.01),
     (Profile(STEPS, 0.03), 0.05), (Profile(1500, 0.12), 0.005), (Profile(1250, 0.1), 0.2)],
    ids=str,
)  # fmt: skip
def test_an_average_of_another_length_is_the_tracked_one(wanted, share):
    weights = posthoc_ema.posthoc_weights(SNAPSHOTS, wanted=wanted)
    averages, walks = tracked(wanted.sigma_rel)
    exact = averages[wanted.step - 1]
    error = rms(reconstruct(weights) - exact)
    nearest = min(rms(tracked(p.sigma_rel)[0][p.step - 1] - exact) for p in SNAPSHOTS)
    assert error < share * nearest
    # What the residual promises, by Cauchy and Schwarz: a walk's deviation from any one value
    # times the error of its weights. The norm of the weights themselves is read off impulses.
    residual = posthoc_ema.residual(SNAPSHOTS, weights, wanted=wanted)
    t = wanted.step
    edges = (np.arange(t + 1) / t) ** (ema.gamma_from_sigma_rel(wanted.sigma_rel) + 1)
    spread = np.sqrt(np.sum((walks - exact) ** 2, axis=0))
    bound = residual * np.linalg.norm(np.diff(edges)) * spread
    assert np.all(np.abs(reconstruct(weights) - exact) <= 1.01 * bound + 1e-4)


def test_weights_are_the_least_squares_of_sampled_profiles():
    # (2) on a fine grid, the side condition solved for the last weight.
    snapshots = [Profile(40, 0.05), Profile(100, 0.2), Profile(70, 0.1), Profile(100, 0.05)]
    wanted = Profile(90, 0.12)
    cells, t = 200_000, 100
    tau = (np.arange(cells) + 0.5) * t / cells

    def density(profile):
        gamma = ema.gamma_from_sigma_rel(profile.sigma_rel)
        curve = np.where(tau <= profile.step, (tau / profile.step) ** gamma, 0.0)
        return curve / (curve.sum() * t / cells)

    curves, target = np.stack([density(p) for p in snapshots]), density(wanted)
    free = np.linalg.lstsq((curves[:-1] - curves[-1]).T, target - curves[-1], rcond=None)[0]
    expected = np.append(free, 1 - free.sum())
    weights = posthoc_ema.posthoc_weights(snapshots, wanted=wanted)
    assert weights.dtype == np.float64 and weights.shape == (4,)
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-6)
    error = np.linalg.norm(expected @ curves - target) / np.linalg.norm(target)
    assert posthoc_ema.residual(snapshots, weights, wanted=wanted) == pytest.approx(error, rel=1e-4)


def test_the_residual_of_one_average_for_another_is_their_distance():
    (t, gamma), (t_wanted, gamma_wanted) = (60, 4.0), (100, 2.5)

    def curve(tau, t, gamma):
        return (gamma + 1) * tau**gamma / t ** (gamma + 1) if tau <= t else 0.0

    def squared(f):
        return sum(integrate.quad(lambda x: f(x) ** 2, *ends)[0] for ends in ((0, 60), (60, 100)))

    expected = np.sqrt(
        squared(lambda x: curve(x, t, gamma) - curve(x, t_wanted, gamma_wanted))
        / squared(lambda x: curve(x, t_wanted, gamma_wanted))
    )
    stored = Profile(t, ema.sigma_rel_from_gamma(gamma))
    wanted = Profile(t_wanted, ema.sigma_rel_from_gamma(gamma_wanted))
    for pair in (stored, wanted), (wanted, stored):
        weights = posthoc_ema.posthoc_weights(pair[:1], wanted=pair[1])
        assert weights == pytest.approx([1.0], abs=1e-12)
    found = posthoc_ema.residual([stored], np.ones(1), wanted=wanted)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("index", [0, 7, 25, len(SNAPSHOTS) - 1])
def test_a_stored_average_is_itself(index):
    weights = posthoc_ema.posthoc_weights(SNAPSHOTS, wanted=SNAPSHOTS[index])
    np.testing.assert_allclose(weights, np.eye(len(SNAPSHOTS))[index], atol=1e-9)
    assert posthoc_ema.residual(SNAPSHOTS, weights, wanted=SNAPSHOTS[index]) < 1e-7


def test_many_and_repeated_snapshots_are_no_trouble():
    many = [Profile(step, w) for step in range(4000, 1_000_001, 4000) for w in STORED]
    many += many[-4:]
    weights = posthoc_ema.posthoc_weights(many, wanted=Profile(10**6, 0.15))
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    # The last average, stored twice, is used half and half; no weight grows out of hand.
    assert weights[-1] == pytest.approx(weights[-5], rel=1e-4) and np.abs(weights).sum() < 5
    residual = posthoc_ema.residual(many, weights, wanted=Profile(10**6, 0.15))
    few = SNAPSHOTS[-2:]
    of_few = posthoc_ema.residual(
        few, posthoc_ema.posthoc_weights(few, wanted=Profile(STEPS, 0.15)),
        wanted=Profile(STEPS, 0.15),
    )  # fmt: skip
    assert residual < 1e-4 < 0.1 < of_few


@pytest.mark.parametrize(("step", "every"), [(3, 1), (12, 3), (40, 8)])
def test_few_steps_do_no_worse_than_their_residual(step, every):
    # The weights of single updates come from impulses through the average itself.
    def impulses(profile):
        average = np.zeros(step)
        for i in range(profile.step):
            decay = float(ema.power_decay(i, sigma_rel=profile.sigma_rel))
            average = decay * average + (1 - decay) * np.eye(step)[i]
        return average

    snapshots = [Profile(t, w) for t in range(every, step + 1, every) for w in STORED]
    for width in (0.03, 0.07, 0.15, 0.2):
        wanted = Profile(step, width)
        weights = posthoc_ema.posthoc_weights(snapshots, wanted=wanted)
        exact = impulses(wanted)
        made = sum(w * impulses(p) for w, p in zip(weights, snapshots, strict=True))
        error = np.linalg.norm(made - exact) / np.linalg.norm(exact)
        assert error <= 1.02 * posthoc_ema.residual(snapshots, weights, wanted=wanted) + 1e-6


def test_sums_are_in_float64_and_leaves_keep_their_types():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(2, 1000)).astype(np.float32)
    values[1] = values[0] * np.float32(1 + 1e-4)
    trees = [{"a": jnp.asarray(v), "b": [jnp.asarray(v[:3], jnp.bfloat16)]} for v in values]
    weights = np.array([9999.0, -9998.0])
    # Exact in integers times 2^-149, rounded once.
    exact = np.array([9999 * float(a) - 9998 * float(b) for a, b in values.T])
    made = posthoc_ema.combine(iter(trees), weights)
    assert made["a"].dtype == np.float32 and made["b"][0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(made["a"], exact.astype(np.float32))
    in_float32 = np.float32(9999) * values[0] - np.float32(9998) * values[1]
    assert np.abs(in_float32 - exact).max() > 100 * np.abs(made["a"] - exact).max()
    scalar = posthoc_ema.combine([{"s": np.float32(2)}], np.ones(1))
    assert scalar["s"].shape == () and scalar["s"] == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: posthoc_ema.posthoc_weights([], wanted=Profile(1, 0.1)), "at least one stored"),
        (lambda: posthoc_ema.posthoc_weights([Profile(0, 0.1)], wanted=Profile(1, 0.1)),
         "step must be 1 or more, not 0"),
        (lambda: posthoc_ema.posthoc_weights([Profile(1, 0.1)], wanted=Profile(1, 0.3)),
         "sigma_rel must be in .* not 0.3"),
        (lambda: posthoc_ema.residual([Profile(1, 0.1)], np.ones(2), wanted=Profile(1, 0.1)),
         r"expected 1 weights, not shape \(2,\)"),
        (lambda: posthoc_ema.combine([], np.ones(0)), "at least one tree"),
        (lambda: posthoc_ema.combine([{"a": np.ones(1)}], np.ones(2)), "not 2 weights for 1 trees"),
        (lambda: posthoc_ema.combine([{"a": np.ones(1)}] * 3, np.ones(2)), "one weight a tree"),
        (lambda: posthoc_ema.combine([{"a": np.ones(1)}, {"b": np.ones(1)}], np.ones(2)),
         "trees of one structure"),
        (lambda: posthoc_ema.combine([{"a": np.ones(2)}, {"a": np.ones(1)}], np.ones(2)),
         r"leaves of one shape, not \(1,\) and \(2,\)"),
        (lambda: posthoc_ema.combine([{"a": np.ones(2, int)}], np.ones(1)), "floating point"),
    ],
)  # fmt: skip
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
