"""MeanFlow and shortcut models: the exact average velocity is where their losses are least."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import parametrisations
from diffjax.losses import mean_flow, shortcut
from tests.losses.gaussian import affine, exact_average_velocity, exact_velocity, pairs


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


TIMES = [(0.9, 0.2), (0.5, 0.1), (1.0, 0.0), (0.7, 0.7)]


@pytest.mark.parametrize("t, s", TIMES)
@pytest.mark.parametrize("tangent", mean_flow.TANGENTS)
def test_the_exact_average_velocity_has_no_mean_flow_error(t, s, tangent):
    x_0, eps, _ = pairs()
    t, s = (jnp.full(len(x_0), time) for time in (t, s))
    x_t = mean_flow.straight_path(x_0, eps, t)
    error = mean_flow.mean_flow_error(
        exact_average_velocity, x_0, t=t, s=s, eps=eps,
        target=exact_velocity(x_t, t), tangent=tangent,
    )  # fmt: skip
    np.testing.assert_allclose(error, 0, atol=1e-6)


@pytest.mark.parametrize("t, s", TIMES)
@pytest.mark.parametrize("tangent", mean_flow.TANGENTS)
def test_the_exact_average_velocity_minimises_the_mean_flow_loss_on_samples(t, s, tangent):
    """The loss knows single x_0 and eps alone; its expected gradient is 0 at the exact u."""
    x_0, eps, weights = pairs()
    t, s = (jnp.full(len(x_0), time) for time in (t, s))

    def loss(p):
        error = mean_flow.mean_flow_error(
            affine(exact_average_velocity)(p), x_0, t=t, s=s, eps=eps, tangent=tangent
        )
        return jnp.sum(weights * jnp.sum(error**2, axis=1))

    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(2)), 0, atol=1e-6)
    assert np.abs(jax.grad(loss)(jnp.array([0.1, 0.1]))).min() > 1e-2


def test_guidance_is_the_linear_combination_where_there_is_a_condition():
    x_0, eps, _ = pairs()
    t = jnp.full(len(x_0), 0.6)
    guided = jnp.arange(len(x_0)) % 2 == 0

    def velocity(x, t, s, cond):
        return x + cond

    v = mean_flow.guided_velocity(
        velocity, x_0, t=t, eps=eps, cond=2.0, null=0.0, guided=guided, scale=3.0, mix=0.5
    )
    x_t = 0.4 * x_0 + 0.6 * eps
    # Scale 3 / (1 - 1/2) = 6 of an exact velocity: u_null + 6 (v - u_null) times 1/2, plus u / 2.
    expected = 0.5 * (x_t + 6 * (eps - x_0 - x_t)) + 0.5 * (x_t + 2)
    np.testing.assert_allclose(v[guided], expected[guided], atol=1e-12)
    np.testing.assert_allclose(v[~guided], (eps - x_0)[~guided], atol=1e-12)


def test_adaptive_weights_interpolate_between_a_square_and_equal_weights():
    squared = jnp.array([0.01, 1.0, 100.0])

    def slopes(power):
        return jax.grad(lambda x: mean_flow.adaptive(x, power=power).sum())(squared) * squared

    np.testing.assert_allclose(slopes(0.0), squared)
    np.testing.assert_allclose(slopes(1.0), squared / (squared + 1e-3), rtol=1e-12)


@pytest.mark.parametrize("d", [1.0, 0.5, 0.125])
def test_the_exact_average_velocity_has_no_shortcut_error(d):
    x_0, eps, _ = pairs()
    t = jnp.full(len(x_0), 1.0)
    error = shortcut.shortcut_error(
        exact_average_velocity, x_0, t=t, d=jnp.full(len(x_0), d), eps=eps
    )
    np.testing.assert_allclose(error, 0, atol=1e-12)


def test_a_shortcut_of_size_0_is_flow_matching():
    x_0, eps, weights = pairs()
    t, d = jnp.full(len(x_0), 0.3), jnp.zeros(len(x_0))

    def loss(p):
        velocity = affine(exact_average_velocity)(p)
        error = shortcut.shortcut_error(velocity, x_0, t=t, d=d, eps=eps)
        return jnp.sum(weights * error[:, 0] ** 2)

    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(2)), 0, atol=1e-9)


def test_step_sizes_are_halves_each_as_often():
    u = (jnp.arange(60) + 0.5) / 60
    sizes, counts = np.unique(shortcut.step_sizes(u, levels=3), return_counts=True)
    assert sizes.tolist() == [0.25, 0.5, 1.0] and counts.tolist() == [20, 20, 20]
    with pytest.raises(ValueError, match="levels must be at least 1"):
        shortcut.step_sizes(u, levels=0)


def test_average_velocity_is_the_velocity_at_span_0():
    p = parametrisations.average_velocity
    assert p.spans and p.target is parametrisations.velocity.target
