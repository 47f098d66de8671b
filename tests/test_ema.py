"""Averages of parameters against TensorFlow's definition, impulses, means and sums by hand."""

import functools

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


def weights_of_updates(decay, n, *, start=1e6):
    """(n,) the weight of every update's parameters in the average: entry i gets an impulse at i.

    The start must count for nothing, or it shows in every weight.
    """

    def step(average, i):
        impulse = jnp.where(jnp.arange(n) == i, 1.0, 0.0)
        return ema.update(average, impulse, decay=decay(i)), None

    with jax.enable_x64(True):
        return np.asarray(jax.lax.scan(step, jnp.full(n, start), jnp.arange(n))[0])


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_power_decay_has_the_profile_and_the_width_of_its_name(sigma_rel):
    n = 2000
    weights = weights_of_updates(functools.partial(ema.power_decay, sigma_rel=sigma_rel), n)
    middle = np.arange(n) + 0.5
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    mean = (weights * middle).sum()
    width = np.sqrt((weights * (middle - mean) ** 2).sum()) / n
    assert width == pytest.approx(sigma_rel, rel=1e-4)
    # Equation 1 of the paper: a power of the time, here by the slope of its logarithm.
    late = slice(n // 2, None)
    slope, _ = np.polyfit(np.log(middle[late]), np.log(weights[late]), 1)
    assert slope == pytest.approx({0.05: 16.97, 0.1: 6.94, 0.25: 0.72}[sigma_rel], rel=1e-3)
    assert np.ptp(np.log(weights[late]) - slope * np.log(middle[late])) < 1e-3


@pytest.mark.parametrize(
    "decay",
    [functools.partial(ema.power_decay, sigma_rel=12**-0.5),
     functools.partial(ema.inverse_decay, power=1.0, max_decay=1.0)],
    ids=["power", "inverse"],
)  # fmt: skip
def test_the_widest_averages_are_plain_means(decay):
    np.testing.assert_allclose(weights_of_updates(decay, 500), 1 / 500, rtol=1e-4)


@pytest.mark.parametrize(
    "decay", [functools.partial(ema.power_decay, sigma_rel=0.1), ema.inverse_decay]
)
def test_the_first_update_forgets_the_start(decay):
    params = {"w": jnp.array([0.1, -3.0])}
    start = {"w": jnp.array([1e3, 0.7])}
    after = ema.update(start, params, decay=decay(jnp.int32(0)))
    np.testing.assert_allclose(after["w"], params["w"], atol=1e-4)
    assert decay(0) == 0


def test_a_constant_decay_is_a_geometric_series():
    weights = weights_of_updates(functools.partial(ema.constant_decay, decay=0.9), 30, start=0.0)
    np.testing.assert_allclose(weights[1:] / weights[:-1], 1 / 0.9, rtol=1e-6)
    assert weights.sum() == pytest.approx(1 - 0.9**30, rel=1e-6)


@pytest.mark.parametrize(
    "decay",
    [functools.partial(ema.constant_decay, decay=0.9999),
     functools.partial(ema.warmed_up_decay, decay=0.9999),
     functools.partial(ema.inverse_decay, max_decay=1.0),
     functools.partial(ema.power_decay, sigma_rel=0.05)],
    ids=["constant", "warmed up", "inverse", "power"],
)  # fmt: skip
def test_every_decay_has_one_signature_and_stays_in_range(decay):
    steps = jnp.concatenate([jnp.arange(100), jnp.geomspace(1e2, 1e9, 200).astype(jnp.int32)])
    values = jax.jit(jax.vmap(decay))(steps)
    assert values.dtype == jnp.float32 and values.shape == steps.shape
    assert decay(3).dtype == decay(jnp.int32(3)).dtype == jnp.float32 and decay(3).shape == ()
    values = np.asarray(values, np.float64)
    assert np.all((values >= 0) & (values <= 1)) and np.all(np.diff(values) >= -1.2e-7)


@pytest.mark.parametrize("step", [1, 10, 10**3, 10**5, 10**6, 10**7])
def test_decays_are_as_near_to_1_as_float32_can_say(step):
    # Exact arithmetic on integers for the ratio, then float64: gamma + 1 = 8 and power 1/2.
    ulp = 2.0**-24
    sigma_rel = ema.sigma_rel_from_gamma(7.0)
    power = float(ema.power_decay(step, sigma_rel=sigma_rel))
    assert abs(power - (step**8 / (step + 1) ** 8)) <= 1.1 * ulp
    inverse = float(ema.inverse_decay(step, power=0.5, max_decay=1.0))
    assert abs(inverse - (1 - (1 + step) ** -0.5)) <= 1.1 * ulp


def test_inverse_decay_reaches_the_lengths_it_names():
    for power, step, decay in [(2 / 3, 31_600, 0.999), (2 / 3, 10**6, 0.9999),
                               (3 / 4, 10_000, 0.999), (3 / 4, 215_400, 0.9999)]:  # fmt: skip
        reached = ema.inverse_decay(step, power=power, max_decay=1.0)
        assert float(reached) == pytest.approx(decay, abs=2e-3 * (1 - decay))


def test_gamma_and_width():
    # Karras et al. 2024, section 3.1.
    assert ema.gamma_from_sigma_rel(0.05) == pytest.approx(16.97, abs=5e-3)
    assert ema.gamma_from_sigma_rel(0.1) == pytest.approx(6.94, abs=5e-3)
    assert ema.sigma_rel_from_gamma(0) == pytest.approx(np.std(np.linspace(0, 1, 10**6)), abs=1e-6)
    for width in np.geomspace(1e-4, 12**-0.5, 50):
        back = ema.sigma_rel_from_gamma(ema.gamma_from_sigma_rel(width))
        assert back == pytest.approx(width, rel=1e-12)
    for gamma in (0.0, 1e-3, 0.5, 6.94, 100.0):
        back = ema.gamma_from_sigma_rel(ema.sigma_rel_from_gamma(gamma))
        assert back == pytest.approx(gamma, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ema.constant_decay(0, decay=1.5), r"decay must be in \[0, 1\], not 1.5"),
        (lambda: ema.inverse_decay(0, inv_gamma=0.0), "inv_gamma and power .* not 0.0 and 0.66"),
        (lambda: ema.inverse_decay(0, power=-1.0), "inv_gamma and power .* not 1.0 and -1.0"),
        (lambda: ema.inverse_decay(0, min_decay=0.9, max_decay=0.5), "min_decay 0.9 .*decay 0.5"),
        (
            lambda: ema.power_decay(0, sigma_rel=0.3),
            r"sigma_rel must be in \(0, .*0.2887\], not 0.3",
        ),
        (lambda: ema.gamma_from_sigma_rel(0.0), r"sigma_rel must be in \(0, .*, not 0.0"),
        (lambda: ema.gamma_from_sigma_rel(float("nan")), "sigma_rel must be in .*, not nan"),
        (lambda: ema.sigma_rel_from_gamma(-0.5), "gamma must not be below 0, not -0.5"),
    ],
)
def test_options_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
