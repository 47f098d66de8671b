"""Losses of a GAN: slopes known by hand, and the best discriminators between known laws."""

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import adversarial

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_a_linear_discriminators_penalty_is_its_squared_length():
    w = jnp.array([[[1.0], [-2.0]], [[0.5], [2.0]]])
    x = jax.random.normal(KEY, (3, 2, 2, 1))
    logits, penalty = adversarial.gradient_penalty(lambda x: (x * w).sum((1, 2, 3)) + 7, x)
    np.testing.assert_allclose(penalty, [9.25] * 3, rtol=1e-6)
    np.testing.assert_allclose(logits, np.tensordot(x, w, 3) + 7, rtol=1e-5)


def test_a_quadratic_discriminators_penalty_and_its_own_slope():
    """D(x) = x'Ax / 2 has slope Ax, so the penalty is |Ax|^2 and its slope by A is 2 A x x'."""
    a = np.array([[2.0, 1.0], [1.0, -3.0]], np.float32)
    x = jnp.array([[1.0, 2.0], [-0.5, 0.0]])

    def penalty(a):
        a = (a + a.T) / 2
        return adversarial.gradient_penalty(lambda x: ((x @ a) * x).sum(1) / 2, x)[1]

    np.testing.assert_allclose(penalty(a), [4**2 + 5**2, 1 + 0.25], rtol=1e-6)
    outer = np.einsum("ij,bj,bk->ik", a, x, x)
    np.testing.assert_allclose(jax.grad(lambda a: penalty(a).sum())(a), outer + outer.T, rtol=1e-5)


def test_the_relativistic_game_of_one_parameter_converges_with_both_penalties_alone():
    """The Dirac GAN (Mescheder et al. 2018): data at 0, G at theta, D(x) = psi x.

    The losses are softplus(+-psi theta), and penalties psi^2 each. Without them the Jacobian at
    (0, 0) has eigenvalues +-i/2: near it gradient steps spiral outwards, to a circle; with them,
    inwards.
    """

    def run(gamma):
        def of_discriminator(psi, theta):
            real, of_real = adversarial.gradient_penalty(lambda x: psi * x[:, 0], jnp.zeros((1, 1)))
            x = theta.reshape(1, 1)
            fake, of_fake = adversarial.gradient_penalty(lambda x: psi * x[:, 0], x)
            loss = adversarial.relativistic_discriminator_loss(real, fake)
            return loss + gamma / 2 * (of_real + of_fake).mean()

        def of_generator(theta, psi):
            return adversarial.relativistic_generator_loss(jnp.zeros(1), psi * theta[None])

        def step(state, _):
            psi, theta = state
            changes = jax.grad(of_discriminator)(psi, theta), jax.grad(of_generator)(theta, psi)
            return (psi - 0.1 * changes[0], theta - 0.1 * changes[1]), None

        start = jnp.float32(0.0), jnp.float32(1.0)
        end, _ = jax.lax.scan(step, start, length=300)
        return float(jnp.hypot(*end))

    assert run(0.0) > 0.4
    assert run(0.5) < 1e-3


def test_the_best_relativistic_discriminator_of_two_gaussians():
    """D minimises E softplus(D(y) - D(x)), a logistic regression of x - y on the label 1.

    For x of N(m, s^2) and y of N(-m, s^2) the log-odds of (x, y) against (y, x) are the sum of
    log-ratios, 2m/s^2 x - 2m/s^2 y: the best linear D has the slope 2m/s^2.
    """
    m, s = 0.3, 0.8
    x, y = (jnp.asarray(RNG.normal(sign * m, s, 400_000), jnp.float32) for sign in (1, -1))
    slopes = np.linspace(0.5, 1.5, 101) * 2 * m / s**2
    losses = [float(adversarial.relativistic_discriminator_loss(a * x, a * y)) for a in slopes]
    assert abs(slopes[np.argmin(losses)] - 2 * m / s**2) < 0.03
    # The generator's loss is the same game with the sides exchanged.
    np.testing.assert_allclose(
        adversarial.relativistic_generator_loss(y, x),
        adversarial.relativistic_discriminator_loss(x, y),
        rtol=1e-6,
    )


def test_equal_logits_cost_log_two_and_far_ones_stay_finite():
    zero = jnp.zeros(3)
    for loss in (
        adversarial.relativistic_discriminator_loss, adversarial.relativistic_generator_loss
    ):  # fmt: skip
        np.testing.assert_allclose(loss(zero, zero), np.log(2), rtol=1e-6)
    lost = adversarial.relativistic_discriminator_loss(zero - 1e4, zero + 1e4)
    np.testing.assert_allclose(lost, 2e4)


def test_the_best_discriminator_tells_which_law_is_denser():
    """For laws p and q over three places, the hinge loss is least at sign(p - q)."""
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    counts = np.round(1000 * np.stack([p, q])).astype(int)
    grid = np.array(np.meshgrid(*[np.linspace(-2, 2, 9)] * 3)).reshape(3, -1).T
    losses = [
        float(adversarial.hinge_discriminator_loss(
            jnp.repeat(jnp.asarray(d), counts[0], total_repeat_length=1000),
            jnp.repeat(jnp.asarray(d), counts[1], total_repeat_length=1000),
        )) for d in grid
    ]  # fmt: skip
    best = grid[int(np.argmin(losses))]
    assert best[0] == 1 and best[2] == -1


def test_the_generator_is_drawn_to_what_looks_real():
    logits = jnp.array([[[1.0, 3.0]], [[-2.0, 0.0]]])
    np.testing.assert_allclose(adversarial.hinge_generator_loss(logits), [-2.0, 1.0])


def test_spectral_norms_are_those_of_the_svd():
    params = {
        "conv": {"kernel": jnp.asarray(RNG.normal(size=(3, 3, 4, 6)), jnp.float32)},
        "dense": {"kernel": jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32), "bias": jnp.ones(2)},
    }
    directions = adversarial.initial_directions(params, KEY)
    for _ in range(100):
        normalised, directions = adversarial.spectral_norm(params, directions)
    for name in params:
        kernel = np.asarray(params[name]["kernel"], np.float64)
        norm = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]))[1][0]
        np.testing.assert_allclose(normalised[name]["kernel"], kernel / norm, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(normalised["dense"]["bias"], params["dense"]["bias"])


def test_no_step_along_a_kernel_changes_what_is_normalised():
    """W / |W| does not depend on W's length, so that slopes are at right angles to W."""
    params = {"kernel": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
    weights = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    directions = adversarial.initial_directions(params, KEY)
    for _ in range(100):
        _, directions = adversarial.spectral_norm(params, directions)

    def loss(params):
        return (adversarial.spectral_norm(params, directions)[0]["kernel"] * weights).sum()

    slope = jax.grad(loss)(params)["kernel"]
    assert float(jnp.abs(slope).max()) > 0.01
    assert abs(float((slope * params["kernel"]).sum())) < 1e-5
