"""Self-conditioning with networks so small that two passes can be written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, memory, samplers, schedules, self_conditioning
from diffjax import parametrisations as p

FLOW = schedules.rectified_flow()
T = jnp.array([0.2, 0.5, 0.9])
X_T, X_0, EPS = jax.random.normal(jax.random.key(0), (3, 3, 4, 4, 2))
A, B = jnp.array(0.7), jnp.array(-0.4)
YES, NO = jnp.ones(3, bool), jnp.zeros(3, bool)


def linear(a, b):
    """a x + b estimate: its two halves of the channels told apart by their weights."""

    def network(x, time_input, cond):
        channels = x.shape[-1] // 2
        return a * x[..., :channels] + b * x[..., channels:]

    return network


def trained(use_estimate, a=A, b=B, t=T, schedule=FLOW, parametrisation=p.x0, **options):
    return self_conditioning.training_network(
        linear(a, b),
        schedule,
        t=t,
        use_estimate=use_estimate,
        parametrisation=parametrisation,
        **options,
    )


def test_two_passes_of_an_x0_network_by_hand():
    # The first pass says a x; the second a x + b (a x). Without a coin it stays the first.
    output = trained(jnp.array([True, False, True]))(X_T, T, None)
    expected = np.stack([0.42 * X_T[0], 0.7 * X_T[1], 0.42 * X_T[2]])
    np.testing.assert_allclose(output, expected, rtol=1e-5)


def test_two_passes_of_a_velocity_network_by_hand():
    # velocity = a x; on a rectified flow x_0 = x - t velocity, here (1 - 0.7 t) x.
    output = trained(YES, parametrisation=p.velocity)(X_T, T, None)
    factor = np.array([0.7 - 0.4 * 0.86, 0.7 - 0.4 * 0.65, 0.7 - 0.4 * 0.37])
    np.testing.assert_allclose(output, factor[:, None, None, None] * X_T, rtol=1e-5)


def test_the_input_scale_is_on_x_t_alone():
    # EDM at sigma = sigma_data = 0.5: c_in = sqrt 2, and c_skip = 1/2, c_out = 1 / sqrt 8.
    schedule, seen = schedules.karras(), []
    t = jnp.full(3, schedule.time(-2 * np.log(0.5)), jnp.float32)

    def network(x, time_input, cond):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return jnp.ones_like(x[..., :2])

    denoise = self_conditioning.self_conditioned(network, schedule, parametrisation=p.edm())
    denoise(X_T, t)
    jax.effects_barrier()
    assert len(seen) == 2
    for x in seen:
        np.testing.assert_allclose(x[..., :2], np.sqrt(2) * X_T, rtol=1e-4)
    np.testing.assert_array_equal(seen[0][..., 2:], 0)
    np.testing.assert_allclose(seen[1][..., 2:], X_T / 2 + 8**-0.5, rtol=1e-4, atol=1e-5)

    seen.clear()
    plain = self_conditioning.training_network(
        network, schedule, t=t, use_estimate=YES, parametrisation=p.edm()
    )
    plain(np.sqrt(2) * X_T, t, None)
    jax.effects_barrier()
    np.testing.assert_allclose(seen[1][..., 2:], X_T / 2 + 8**-0.5, rtol=1e-4, atol=1e-5)


def loss(a, b, use_estimate):
    return dj.diffusion_loss(
        trained(use_estimate, a, b), X_0, prediction=dj.Prediction(FLOW, p.x0), t=T, eps=EPS
    ).mean()


def test_no_gradient_flows_through_the_first_pass():
    # With the estimate held at its value c = a x the loss is that of a x + b c - x_0: a least
    # squares problem, whose gradient is a sum over pixels.
    x_0, eps, t = (np.asarray(v, np.float64) for v in (X_0, EPS, T[:, None, None, None]))
    x = (1 - t) * x_0 + t * eps
    residual = 0.7 * x - 0.4 * 0.7 * x - x_0
    of_a, of_b = jax.grad(loss, argnums=(0, 1))(A, B, YES)
    np.testing.assert_allclose(of_a, np.mean(2 * residual * x), rtol=1e-4)
    np.testing.assert_allclose(of_b, np.mean(2 * residual * 0.7 * x), rtol=1e-4)


def test_without_coins_training_is_that_of_zeros():
    plain = lambda x, time_input, cond: linear(A, B)(  # noqa: E731
        jnp.concatenate([x, 0 * x], -1), time_input, cond
    )
    expected = dj.diffusion_loss(plain, X_0, prediction=dj.Prediction(FLOW, p.x0), t=T, eps=EPS)
    np.testing.assert_allclose(loss(A, B, NO), expected.mean(), rtol=1e-6)
    assert jax.grad(loss, argnums=1)(A, B, NO) == 0


def curved(x, time_input, cond):
    """A network that uses all that it is given."""
    half = x.shape[-1] // 2
    time = time_input[:, None, None, None] / 1000
    return jnp.tanh(x[..., :half] * cond + jnp.sin(2 * x[..., half:]) - time)


@pytest.mark.parametrize("parametrisation", [p.eps, p.v, p.edm()], ids=lambda q: q.name)
def test_the_denoiser_shows_the_network_what_training_does(parametrisation):
    cond = jnp.float32(0.8)
    for use_estimate, passes in ((YES, 2), (NO, 1)):
        plain = self_conditioning.training_network(
            curved, FLOW, t=T, use_estimate=use_estimate, parametrisation=parametrisation
        )
        expected = dj.denoiser(plain, FLOW, parametrisation=parametrisation)(X_T, T, cond)
        denoise = self_conditioning.self_conditioned(
            curved, FLOW, parametrisation=parametrisation, passes=passes
        )
        found = denoise(X_T, T, cond)
        np.testing.assert_allclose(found.x_0, expected.x_0, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.eps, expected.eps, rtol=1e-4, atol=1e-5)


def test_many_passes_of_a_linear_network_sum_a_geometric_series():
    # x_0 <- a x + b x_0 from 0 has the fixed point a x / (1 - b).
    denoise = self_conditioning.self_conditioned(linear(A, B), FLOW, parametrisation=p.x0, passes=9)
    expected = 0.7 * X_T * (1 - (-0.4) ** 9) / 1.4
    np.testing.assert_allclose(denoise(X_T, 0.5).x_0, expected, rtol=1e-5)


def test_the_network_is_traced_once_whatever_the_passes():
    calls = []

    def network(x, time_input, cond):
        calls.append(x.shape)
        return x[..., :2]

    denoise = self_conditioning.self_conditioned(network, FLOW, parametrisation=p.v, passes=5)
    jax.eval_shape(denoise, X_T, T)
    assert calls == [(3, 4, 4, 4)]


def test_it_serves_samplers_and_gradients():
    denoise = self_conditioning.self_conditioned(linear(A, B), FLOW, parametrisation=p.x0)
    # x_0 is (a + b a) x at each step; from pure noise, eps is x itself.
    found = samplers.ddim(denoise, X_T, grid=grids.trailing(FLOW, 2))
    middle = 0.5 * 0.42 * X_T + 0.5 * X_T
    np.testing.assert_allclose(found.x_0, 0.42 * middle, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: denoise(x, 0.5).x_0.sum())(X_T)
    np.testing.assert_allclose(gradient, 0.42, rtol=1e-5)


def test_the_estimate_of_the_step_before_by_hand():
    # x_0 is 0.7 x at the first step; then 0.7 x' - 0.4 (0.7 x), where x' is half-way between.
    denoise = self_conditioning.self_conditioned_by_step(linear(A, B), FLOW, parametrisation=p.x0)
    for sampler in (samplers.ddim, samplers.euler):
        found = memory.carried(sampler)(denoise, X_T, grid=grids.trailing(FLOW, 2))
        first = 0.7 * X_T
        middle = 0.5 * first + 0.5 * X_T
        expected = 0.7 * middle - 0.4 * first
        np.testing.assert_allclose(found.x_0, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="hands something on"):
        samplers.ddim(denoise, X_T, grid=grids.trailing(FLOW, 2))


def test_many_small_steps_converge_to_the_fixed_point():
    # Between small steps x hardly moves, so that the estimate comes to (a x + b x_0) = x_0.
    denoise = self_conditioning.self_conditioned_by_step(linear(A, B), FLOW, parametrisation=p.x0)
    exact = self_conditioning.self_conditioned(linear(A, B), FLOW, parametrisation=p.x0, passes=30)
    grid = grids.stop_before_clean(grids.trailing(FLOW, 400))
    ours = memory.carried(samplers.ddim)(denoise, X_T, grid=grid).x_0
    np.testing.assert_allclose(ours, samplers.ddim(exact, X_T, grid=grid).x_0, atol=0.02)


def test_the_limit_is_on_what_the_network_sees():
    # At t = 1 an eps network's x_0 is infinite: it is shown +-1, and told nothing without a coin.
    t = jnp.array([1.0, 1.0, 0.5])
    options = {"a": 0.5, "t": t, "parametrisation": p.eps, "limit": 1.0}
    output = trained(jnp.array([True, False, False]), **options)(X_T, t, None)
    np.testing.assert_allclose(output[0], 0.5 * X_T[0] - 0.4 * np.sign(X_T[0]), rtol=1e-5)
    np.testing.assert_allclose(output[1:], 0.5 * X_T[1:], rtol=1e-6)
    denoise = self_conditioning.self_conditioned(
        linear(0.5, B), FLOW, parametrisation=p.eps, limit=1.0
    )
    eps = denoise(X_T, jnp.array(1.0)).eps
    np.testing.assert_allclose(eps, 0.5 * X_T - 0.4 * np.sign(X_T), rtol=1e-5)
    far = self_conditioning.self_conditioned(linear(9.0, 0), FLOW, parametrisation=p.x0, limit=1.0)
    np.testing.assert_allclose(far(X_T, 0.5).x_0, 9 * X_T, rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused():
    with pytest.raises(
        TypeError, match=r"an array of True and False \(batch,\), not an array of float32"
    ):
        trained(jnp.ones(3))
    with pytest.raises(ValueError, match=r"use_estimate of shape \(2,\) does not fit t"):
        trained(YES[:2])(X_T, T, None)
    with pytest.raises(ValueError, match="limit must be above 0, or None, not 0"):
        trained(YES, limit=0)
    with pytest.raises(ValueError, match=r"use_estimate of shape \(3,\) does not fit t"):
        trained(YES, t=T[:2])(X_T, T, None)
    with pytest.raises(ValueError, match="passes must be at least 1, not 0"):
        self_conditioning.self_conditioned(curved, FLOW, parametrisation=p.v, passes=0)
    with pytest.raises(ValueError, match="limit must be above 0, or None, not -1"):
        self_conditioning.self_conditioned(curved, FLOW, parametrisation=p.v, limit=-1)
    same = lambda x, time_input, cond: x  # noqa: E731, all 2C channels come back
    with pytest.raises(ValueError, match=r"returned \(3, 4, 4, 4\) for x_t of \(3, 4, 4, 2\)"):
        self_conditioning.training_network(same, FLOW, t=T, use_estimate=YES, parametrisation=p.v)(
            X_T, T, None
        )
    with pytest.raises(ValueError, match=r"returned \(3, 4, 4, 4\) for x_t of \(3, 4, 4, 2\)"):
        self_conditioning.self_conditioned(same, FLOW, parametrisation=p.v)(X_T, T)
