"""Dequantisation: draws stay in their bin and have the density that they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffjax import schedules
from diffjax.likelihood import dequantisation

KEY = jax.random.key(0)
EDM = schedules.karras(sigma_min=0.003)
FLOW = schedules.rectified_flow()
WIDTH = 2 / 255
LEVEL = 40 / 127.5 - 1


def off_centre(x):
    """A learned q that leans to one side of the bin."""
    return jnp.full_like(x, 0.7), jnp.full_like(x, 0.1)


MAKERS = {
    "uniform": dequantisation.uniform(FLOW, t_start=0.1),
    "truncated normal": dequantisation.truncated_normal(EDM),
    "truncated normal, scaled": dequantisation.truncated_normal(FLOW, t_start=0.004),
    "variational": dequantisation.variational(off_centre, FLOW, t_start=0.1),
}
SIGNAL = {"uniform": 0.9, "truncated normal": 1.0, "truncated normal, scaled": 0.996,
          "variational": 0.9}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_draws_stay_in_the_bin_and_have_the_density_that_they_say(name):
    n = 40_000
    with jax.enable_x64(True):
        z, log_q = MAKERS[name](jnp.full((n, 1), LEVEL), key=KEY)
    order = np.argsort(z[:, 0])
    z, density = np.asarray(z)[order, 0], np.exp(np.asarray(log_q))[order]
    low, high = SIGNAL[name] * (LEVEL - WIDTH / 2), SIGNAL[name] * (LEVEL + WIDTH / 2)
    assert low <= z[0] and z[-1] <= high and z[-1] - z[0] > 0.9 * (high - low)
    # The density at the draws, by the trapezium rule between them, is their distribution.
    mass = np.concatenate([[0], np.cumsum(np.diff(z) * (density[1:] + density[:-1]) / 2)])
    assert mass[-1] == pytest.approx(1, abs=1e-3)
    # 1.95 / sqrt(n) is the Kolmogorov distance that one in a thousand draws exceeds.
    assert np.abs(mass - np.arange(n) / n).max() < 1.95 / np.sqrt(n) + 1e-3


@pytest.mark.parametrize(
    ("schedule", "t_start"),
    [(EDM, None), (FLOW, 0.004), (schedules.linear_beta(1000), 1), (schedules.linear_log_snr(), 0)],
    ids=["edm", "flow", "linear, noise wider than a bin", "linear log-SNR"],
)
def test_truncated_normal_is_scipys_also_in_float32(schedule, t_start):
    x = jnp.linspace(-1, 1, 2 * 3 * 4, dtype=jnp.float32).reshape(2, 3, 4, 1)
    z, log_q = dequantisation.truncated_normal(schedule, t_start=t_start)(x, key=KEY)
    signal, noise = schedule(np.float64(schedule.t_min if t_start is None else t_start))
    cut = signal * WIDTH / (2 * noise)
    law = scipy.stats.truncnorm(-cut, cut, scale=noise)
    moved = np.asarray(z, np.float64) - signal * np.asarray(x, np.float64)
    # z is rounded near 1, so an offset at the very edge may be read as beyond it.
    moved = np.clip(moved, -cut * noise, cut * noise)
    np.testing.assert_allclose(log_q, law.logpdf(moved).reshape(2, -1).sum(1), rtol=1e-4)


def test_log_q_sums_over_pixels_that_differ():
    # The mean of 1 / q over draws of q is the volume of the bin, whatever q.
    def parameters(x):
        mean = jnp.broadcast_to(jnp.array([-0.5, 0.0, 0.8]), x.shape)
        return mean, jnp.broadcast_to(jnp.array([0.6, 0.5, 0.7]), x.shape)

    n = 40_000
    dequantise = dequantisation.variational(parameters, FLOW, t_start=0.5)
    log_q = dequantise(jnp.full((n, 3), LEVEL), key=KEY).log_q
    volume = np.exp(-np.asarray(log_q, np.float64)) / (WIDTH / 2) ** 3
    assert abs(volume.mean() - 1) < 4 * volume.std() / np.sqrt(n)


@pytest.mark.parametrize("t_start", [None, 0.5])
def test_uniform_bits_of_a_piecewise_constant_density_are_the_entropy(t_start):
    levels = np.array([3, 100, 101, 255])
    counts = np.array([1, 2, 5, 8])
    probability = counts / counts.sum()
    x = np.repeat(levels / 127.5 - 1, counts)[:, None]
    with jax.enable_x64(True):
        z, log_q = dequantisation.uniform(FLOW, t_start=t_start)(jnp.asarray(x), key=KEY)
    signal = 1 - (FLOW.t_min if t_start is None else t_start)
    # The density's value at z, from the bin in which z lies after the scaling is undone.
    bins = np.round((np.asarray(z)[:, 0] / signal + 1) * 127.5).astype(int)
    table = dict(zip(levels, probability, strict=True))
    log_p = np.array([np.log(table[k] * 127.5 / signal) for k in bins])
    bits = (np.asarray(log_q) - log_p).mean() / np.log(2)
    assert bits == pytest.approx(scipy.stats.entropy(probability, base=2), rel=1e-12)


def test_a_learned_q_has_the_bounds_gradient():
    # log p falls linearly over the bin; central differences are the judge.
    x = jnp.full((64, 1), LEVEL)

    def bound(theta):
        def parameters(x):
            return jnp.full_like(x, theta[0]), jnp.full_like(x, theta[1])

        z, log_q = dequantisation.variational(parameters, FLOW)(x, key=KEY)
        return (-300 * z[:, 0] - log_q).mean()

    with jax.enable_x64(True):
        x = x.astype(jnp.float64)
        theta = np.array([0.2, 0.4])
        value = jax.jit(bound)
        gradient = jax.grad(value)(jnp.asarray(theta))
        for i, step in enumerate(1e-5 * np.eye(2)):
            slope = (value(theta + step) - value(theta - step)) / 2e-5
            np.testing.assert_allclose(gradient[i], slope, rtol=1e-5)


def test_an_examples_draw_is_its_keys_alone():
    dequantise, x = MAKERS["uniform"], jnp.full((3, 2), LEVEL)
    keys = jax.random.split(KEY, 3)
    together = dequantise(x, key=keys)
    alone = dequantise(x[:1], key=keys[2:])
    np.testing.assert_array_equal(together.x[2], alone.x[0])
    assert len(np.unique(dequantise(x, key=KEY).x)) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dequantisation.uniform(FLOW, levels=1), "levels must be at least 2, not 1"),
        (lambda: dequantisation.truncated_normal(FLOW, t_start=0.0), r"t_start must lie in .* 0.0"),
        (lambda: dequantisation.uniform(FLOW, t_start=1.0), r"t_start must lie in .* not 1.0"),
        (
            lambda: MAKERS["uniform"](jnp.ones((2, 1), jnp.uint8), key=KEY),
            r"x must be float levels of \[-1, 1\], not uint8",
        ),
        (
            lambda: MAKERS["uniform"](jnp.ones((2, 1)), key=jax.random.split(KEY, 3)),
            r"one such key an example, \(2,\)",
        ),
        (
            lambda: MAKERS["uniform"](jnp.ones((2, 1)), key=jax.random.PRNGKey(0)),
            "array of uint32",
        ),
        (
            lambda: dequantisation.variational(lambda x: (x, x[0]), FLOW)(
                jnp.ones((2, 1)), key=KEY
            ),
            r"of x's shape \(2, 1\), not \(2, 1\) and \(1,\)",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_calls_are_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
