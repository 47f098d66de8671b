"""Learned schedules: shapes and inverses, direct differentiation, and a variance that falls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import learned_schedules, schedules

FORMS = {
    "fixed": learned_schedules.fixed,
    "scalar": learned_schedules.scalar,
    "network": lambda **ends: learned_schedules.network(features=16, **ends),
}
ENDS = {"log_snr_min": -4.0, "log_snr_max": 9.0}
KEY = jax.random.key(0)


def randomised(form, key=KEY, scale=1.0):
    leaves, tree = jax.tree.flatten(form.init(key))
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
    return tree.unflatten(
        [x + scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


@pytest.mark.parametrize("name", FORMS)
def test_a_fresh_schedule_runs_between_its_ends_almost_straight(name):
    form = FORMS[name](**ENDS)
    params, t = form.init(KEY), jnp.linspace(0, 1, 101)
    found = form.log_snr(params, t)
    np.testing.assert_allclose(found[jnp.array([0, -1])], [9.0, -4.0], atol=1e-5)
    straight = schedules.linear_log_snr(**ENDS).log_snr(np.linspace(0, 1, 101))
    assert np.abs(found - straight).max() < (0.5 if name == "network" else 1e-5)
    # One time or many, a time's own answer.
    np.testing.assert_allclose(form.log_snr(params, t[37]), found[37], rtol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_any_parameters_give_a_falling_schedule_and_its_inverse(name):
    form = FORMS[name](**ENDS)
    for i in range(5):
        params = randomised(form, jax.random.key(i))
        schedule = learned_schedules.as_schedule(form, params)
        t = jnp.linspace(0, 1, 201)
        log_snr = schedule.log_snr(t)
        assert np.all(np.diff(log_snr) < 0)
        np.testing.assert_allclose(
            schedule.log_snr(schedule.time(log_snr)), log_snr, atol=1e-4 * np.ptp(log_snr)
        )
        np.testing.assert_allclose(schedule.time(log_snr), t, atol=1e-3)
        signal, noise = schedule(t)
        np.testing.assert_allclose(signal**2 + noise**2, 1, atol=1e-6)
        np.testing.assert_allclose(2 * np.log(signal / noise), log_snr, atol=1e-3)


def test_the_learned_ends_are_the_ends():
    form = learned_schedules.network(features=8, **ENDS)
    params = randomised(form)
    moved = {**params, "ends": {"start": jnp.float32(5.0), "log_fall": jnp.log(7.0)}}
    np.testing.assert_allclose(form.log_snr(moved, jnp.array([0.0, 1.0])), [5, -2], atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_fall_is_the_slope(name):
    form = FORMS[name](**ENDS)
    params = randomised(form, scale=0.5)
    t = jnp.linspace(0.05, 0.95, 19)
    log_snr, fall = learned_schedules.log_snr_and_fall(form, params, t)
    np.testing.assert_allclose(log_snr, form.log_snr(params, t), rtol=1e-6)
    h = 0.01
    four = [form.log_snr(params, t + k * h) for k in (-2, -1, 1, 2)]
    slope = (four[0] - 8 * four[1] + 8 * four[2] - four[3]) / (12 * h)
    assert np.all(fall > 0)
    np.testing.assert_allclose(fall, -slope, rtol=5e-3)


@pytest.mark.parametrize("name", FORMS)
def test_gradients_are_those_of_the_mean_and_of_the_mean_square(name):
    form = FORMS[name](**ENDS)
    schedule_params = randomised(form, scale=0.3)
    t, noise = jnp.linspace(0.02, 0.98, 12), jax.random.normal(KEY, (12,))
    params = {"w": jnp.float32(0.7)}

    def loss(params, log_snr, fall):  # of no meaning: it depends on everything
        each = fall * jnp.square(noise - jnp.tanh(params["w"] * log_snr / 4)) + 0.1 * log_snr
        return each, each.sum()

    (value, more), (grads, schedule_grads) = learned_schedules.value_and_grad(
        loss, params, form=form, schedule_params=schedule_params, t=t
    )

    def each(params, schedule_params):
        scales = learned_schedules.log_snr_and_fall(form, schedule_params, t)
        return loss(params, *scales)[0]

    mean = lambda *args: each(*args).mean()  # noqa: E731
    square = lambda *args: jnp.square(each(*args)).mean()  # noqa: E731
    assert value == pytest.approx(float(mean(params, schedule_params)), rel=1e-5)
    assert more == pytest.approx(12 * float(value), rel=1e-5)
    expected = {
        "ends": jax.grad(mean, 1)(params, schedule_params)["ends"],
        "shape": jax.grad(square, 1)(params, schedule_params)["shape"],
    }
    np.testing.assert_allclose(grads["w"], jax.grad(mean)(params, schedule_params)["w"], rtol=1e-4)
    assert jax.tree.structure(schedule_grads) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()),
        schedule_grads, expected,
    )  # fmt: skip


def test_a_learned_shape_makes_the_loss_of_gaussian_data_even_and_leaves_its_mean():
    # For N(0, 1) data the smallest squared error is 1 / (1 + SNR), in closed form.
    form = learned_schedules.network(log_snr_min=-2.0, log_snr_max=5.0, features=64)

    def loss(params, log_snr, fall):
        return fall / 2 * jax.nn.sigmoid(log_snr), None

    optimizer = optax.adam(0.03)
    t = (jnp.arange(256) + 0.5) / 256
    of = lambda params: loss((), *learned_schedules.log_snr_and_fall(form, params, t))[0]  # noqa: E731

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            times = (t + jax.random.uniform(key)) % 1.0
            _, (_, grads) = learned_schedules.value_and_grad(
                loss, (), form=form, schedule_params=params, t=times
            )
            grads = {**grads, "ends": jax.tree.map(jnp.zeros_like, grads["ends"])}
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        (params, _), _ = jax.lax.scan(step, start, jax.random.split(KEY, 400))
        return params

    before = form.init(KEY)
    first, last = np.asarray(of(before)), np.asarray(of(train(before)))
    # The integral of SNR' / (1 + SNR) over log-SNR from -2 to 5.
    exact = (np.log1p(np.exp(5.0)) - np.log1p(np.exp(-2.0))) / 2
    assert first.mean() == pytest.approx(exact, rel=1e-3)
    assert last.mean() == pytest.approx(exact, rel=5e-3)
    assert first.std() > 0.25 * exact
    assert last.std() < 0.06 * exact


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learned_schedules.fixed(log_snr_min=3.0, log_snr_max=3.0), "not 3.0 and 3.0"),
        (lambda: learned_schedules.scalar(log_snr_min=19.0), "not 19.0 and 13.3"),
        (lambda: learned_schedules.network(log_snr_max=-6.0), "not -5.0 and -6.0"),
        (lambda: learned_schedules.network(features=0), "features must be at least 1, not 0"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
