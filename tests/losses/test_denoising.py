"""The training loss on Gaussian data, whose smallest value is a conditional variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import parametrisations as p
from diffjax import process, schedules, weightings

MEAN, STD, N = 0.3, 0.5, 20_000
KEY = jax.random.key(0)
SCHEDULES = {
    "linear": (schedules.linear_beta(100), 40),
    "flow": (schedules.rectified_flow(), 0.4),
    "edm": (schedules.karras(), 0.4),
}
ALL = {
    "x0": p.x0, "eps": p.eps, "v": p.v, "score": p.score, "velocity": p.velocity, "edm": p.edm(),
}  # fmt: skip


def exact_network(schedule, t, parametrisation):
    """The best answer to every x_t, said in a parametrisation: a regression of Gaussians."""

    def network(x, time_input, cond):
        scales = process.scales_like(schedule, t, x)
        x_t = x / parametrisation.input_scale(scales)
        signal, noise = scales
        x_0 = MEAN + signal * STD**2 * (x_t - signal * MEAN) / ((signal * STD) ** 2 + noise**2)
        return parametrisation.target(x_0, p.eps_from_x0(x_t, x_0, scales), scales)

    return network


def data():
    x_0, eps = jax.random.normal(KEY, (2, N, 2))
    return MEAN + STD * x_0, eps


def loss_of(schedule, time, parametrisation, **options):
    x_0, eps = data()
    t = jnp.full(N, time)
    return dj.diffusion_loss(
        exact_network(schedule, t, parametrisation), x_0, t=t, eps=eps,
        prediction=dj.Prediction(schedule, parametrisation), **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_exact_networks_loss_is_the_conditional_variance(name):
    schedule, time = SCHEDULES[name]
    loss = loss_of(schedule, time, p.x0)
    assert loss.shape == (N,) and loss.dtype == jnp.float32
    # Precisions add: 1 / Var[x_0 | x_t] = 1 / STD^2 + SNR.
    minimum = 1 / (1 / STD**2 + np.exp(schedule.log_snr(time)))
    # A mean of 2 N squares of a Gaussian has the relative standard error sqrt(2 / 2N): four.
    assert abs(float(loss.mean()) / minimum - 1) < 4 / np.sqrt(N)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("weighting", [weightings.min_snr(), weightings.vlb, weightings.edm()])
def test_loss_does_not_depend_on_how_an_exact_network_is_wrapped(name, weighting):
    schedule, time = SCHEDULES[name]
    losses = [loss_of(schedule, time, q, weighting=weighting) for q in ALL.values()]
    for loss in losses[1:]:
        np.testing.assert_allclose(loss, losses[0], rtol=2e-2, atol=2e-4 * float(losses[0].mean()))
        np.testing.assert_allclose(loss.mean(), losses[0].mean(), rtol=1e-3)


@pytest.mark.parametrize("source", ALL)
@pytest.mark.parametrize("target", ALL)
def test_error_in_another_space_is_that_spaces_own_loss(source, target):
    schedule, time = SCHEDULES["linear"]
    loss = loss_of(schedule, time, ALL[source], target=ALL[target])
    own = loss_of(schedule, time, ALL[target])
    np.testing.assert_allclose(loss.mean(), own.mean(), rtol=1e-3)


def test_a_perfect_answer_costs_nothing_and_gradients_are_those_of_a_mean():
    schedule = schedules.linear_beta(100)
    x_0, eps = jax.random.normal(KEY, (2, 3, 4, 4, 1))
    t = jnp.array([1, 50, 100])

    def loss(scale):
        return dj.diffusion_loss(
            lambda x, t, cond: scale * cond, x_0, t=t, eps=eps, cond=eps,
            prediction=dj.Prediction(schedule, p.eps),
        )  # fmt: skip

    np.testing.assert_array_equal(loss(1.0), np.zeros(3))
    np.testing.assert_allclose(loss(0.0), np.mean(np.square(eps), axis=(1, 2, 3)), rtol=1e-6)
    gradient = jax.grad(lambda scale: loss(scale).sum())(0.0)
    np.testing.assert_allclose(gradient, -2 * np.mean(np.square(eps), axis=(1, 2, 3)).sum(), 1e-5)


def test_network_sees_x_t_the_scaled_time_and_cond():
    schedule, seen = schedules.linear_beta(50), {}
    x_0, eps = jax.random.normal(KEY, (2, 2, 3))
    t = jnp.array([5, 50])

    def network(x, time_input, cond):
        seen.update(x=x, time_input=time_input, cond=cond)
        return x

    dj.diffusion_loss(
        network, x_0, prediction=dj.Prediction(schedule, p.eps), t=t, eps=eps, cond="label"
    )
    np.testing.assert_allclose(seen["x"], dj.q_sample(schedule, x_0, t=t, eps=eps))
    np.testing.assert_allclose(seen["time_input"], [100.0, 1000.0])
    assert seen["cond"] == "label"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": jnp.zeros((4, 4, 1))}, r"eps of shape \(4, 4, 1\) does not fit x_0 of shape"),
        ({"t": jnp.array(3)}, r"t of shape \(\) must have the axes \(batch,\)"),
        ({"t": jnp.array([3])}, r"t of shape \(1,\) does not fit x_0 of shape"),
        ({"network": lambda x, t, cond: x[..., :1, :]}, "the network returned"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_shapes_that_would_broadcast_are_refused(change, message):
    arguments = {
        "network": lambda x, t, cond: x,
        "t": jnp.array([1, 2]),
        "eps": jnp.zeros((2, 4, 4, 1)),
    }
    arguments |= change
    network = arguments.pop("network")
    with pytest.raises(ValueError, match=message):
        dj.diffusion_loss(
            network, jnp.zeros((2, 4, 4, 1)),
            prediction=dj.Prediction(schedules.cosine(10), p.eps), **arguments,
        )  # fmt: skip
