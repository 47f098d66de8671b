"""Progressive and distribution-matching distillation of a teacher that is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids
from diffjax.losses import distribution_matching, progressive_distillation
from diffjax.sampling import samplers
from tests.losses.gaussian import COSINE, FLOW, MEAN, STD, denoiser, pairs


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("schedule", [FLOW, COSINE], ids=["flow", "cosine"])
@pytest.mark.parametrize("s", [0.0, 0.2])
def test_one_ddim_step_of_the_goal_ends_where_two_of_the_teacher_do(schedule, s):
    t, middle = 0.8, 0.5
    x_t = jnp.linspace(-2.0, 2.0, 7)[:, None]
    of = [jnp.full(7, time) for time in (t, middle, s)]
    goal = progressive_distillation.two_steps_in_one(
        denoiser(schedule), x_t, schedule=schedule, t=of[0], middle=of[1], s=of[2]
    )
    times = np.array([t, middle, s])
    signal, noise = schedule(times)
    grid = grids.Grid(times, signal, noise)
    two = samplers.ddim(denoiser(schedule), x_t, grid=grid).x_0
    np.testing.assert_allclose(signal[2] * goal.x_0 + noise[2] * goal.eps, two, atol=1e-6)
    np.testing.assert_allclose(signal[0] * goal.x_0 + noise[0] * goal.eps, x_t, atol=1e-6)


def test_distribution_matching_descends_the_divergence():
    """Its expected gradient is that of KL(generator || data) at noise level t, up to the weight."""
    t = 0.5
    x_0, eps, weights = pairs()
    z = (x_0 - MEAN) / STD
    signal, noise = (float(scale) for scale in FLOW(np.array(t)))

    def gradient(p):
        def loss(p):
            each = distribution_matching.distribution_matching_loss(
                p[0] + p[1] * z, teacher=denoiser(FLOW),
                fake=denoiser(FLOW, mean=float(p0), std=float(p1)),
                schedule=FLOW, t=jnp.full(len(z), t), eps=eps,
            )  # fmt: skip
            # The weight is an example's own: take it out, since it is not of the divergence.
            real = denoiser(FLOW)(signal * (p0 + p1 * z) + noise * eps, t).x_0
            weight = 1 / jnp.abs(p0 + p1 * z - real)[:, 0]
            return jnp.sum(weights * each / jax.lax.stop_gradient(weight))

        p0, p1 = p
        return np.asarray(jax.grad(loss)(jnp.array(p)))

    def divergence(p):
        mean, std = signal * p[0], jnp.hypot(signal * p[1], noise)
        of_mean, of_std = signal * MEAN, jnp.hypot(signal * STD, noise)
        return jnp.log(of_std / std) + (std**2 + (mean - of_mean) ** 2) / (2 * of_std**2)

    np.testing.assert_allclose(gradient((MEAN, STD)), 0, atol=1e-9)
    for p in ((0.9, 0.6), (0.4, 1.1), (-0.3, 0.3)):
        # x_0 moves by signal / noise^2 times less than the score, and the score by signal as x.
        exact = np.asarray(jax.grad(divergence)(jnp.array(p))) * noise**2 / signal**2
        np.testing.assert_allclose(gradient(p), exact, rtol=1e-3, atol=1e-6)
