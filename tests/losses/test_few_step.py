"""The losses of few-step models on Gaussian data, where all that they seek is known in closed form.

With x_0 ~ N(m, s^2) an ODE's path keeps its place among the marginals: (x_t - mean_t) / std_t does
not change along it. That gives the flow map, the average velocity and the consistency function;
expectations over (x_0, eps) are exact by Gauss-Hermite quadrature.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import grids, parametrisations, schedules
from diffjax.losses import (
    consistency,
    continuous_consistency,
    distances,
    distribution_matching,
    mean_flow,
    progressive_distillation,
    shortcut,
)
from diffjax.parametrisations import Estimates
from diffjax.process import broadcast, scales_like
from diffjax.sampling import samplers

MEAN, STD = 0.4, 0.6
FLOW = schedules.rectified_flow()
EDM = schedules.karras()
COSINE = schedules.continuous_cosine()


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def marginal(schedule, t, x, *, mean=MEAN, std=STD):
    """Mean and standard deviation of x_t, which multiply (B, ...) arrays."""
    t = jnp.asarray(t)
    # The flow's pair as it is written: the slope of its log-SNR is infinite at both ends.
    pair = (1 - t, t) if schedule is FLOW else schedule(t)
    signal, noise = (broadcast(scale, x) for scale in pair)
    return signal * mean, jnp.hypot(signal * std, noise)


def exact_map(x_t, t, s, *, schedule=FLOW):
    (mean_t, std_t), (mean_s, std_s) = (marginal(schedule, time, x_t) for time in (t, s))
    return mean_s + std_s / std_t * (x_t - mean_t)


def exact_average_velocity(x_t, t, s, cond=None):
    """(x_t - x_s) / (t - s), and its limit: the slope of the path."""
    t, s = jnp.asarray(t), jnp.asarray(s)
    span = broadcast(t - s, x_t)
    apart = jnp.where(span == 0, 1.0, span)
    return jnp.where(span == 0, exact_velocity(x_t, t), (x_t - exact_map(x_t, t, s)) / apart)


def exact_velocity(x_t, t):
    """E[eps - x_0 | x_t] by the regression of jointly Gaussian variables."""
    t = broadcast(t, x_t)
    variance = ((1 - t) * STD) ** 2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x_t - (1 - t) * MEAN)


def denoiser(schedule, *, mean=MEAN, std=STD):
    """The posterior mean of x_0, and the eps that goes with it."""

    def denoise(x_t, t, cond=None):
        scales = scales_like(schedule, t, x_t)
        signal, noise = scales
        power = (signal * std) ** 2 + noise**2
        x_0 = mean + signal * std**2 * (x_t - signal * mean) / power
        return Estimates(x_0, noise * (x_t - signal * mean) / power)

    return denoise


def consistency_function(schedule):
    """The path's end as a denoiser."""

    def denoise(x_t, t, cond=None):
        mean, std = marginal(schedule, t, x_t)
        x_0 = MEAN + STD / std * (x_t - mean)
        signal, noise = scales_like(schedule, t, x_t)
        return Estimates(x_0, (x_t - signal * x_0) / noise)

    return denoise


def pairs(count=9):
    """(x_0, eps) (B, 1) and weights (B,): E f = sum w f, exact for polynomials of low degree."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    a, b = (grid.ravel() for grid in np.meshgrid(nodes, nodes))
    x_0, eps = (jnp.asarray(v)[:, None] for v in (MEAN + STD * a, b))
    return x_0, eps, jnp.asarray(np.outer(weights, weights).ravel())


def affine(exact):
    """exact plus p0 + p1 x, the directions in which a network may be wrong."""
    return lambda p: lambda x, *rest: exact(x, *rest) + p[0] + p[1] * x


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


def consistency_gradient(schedule, gap, *, teacher=None, at=(0.0, 0.0)):
    """The expected gradient of the squared consistency loss, by the two ways to be wrong."""
    x_0, eps, weights = pairs()
    t = jnp.full(len(x_0), 0.6)
    f = consistency_function(schedule)

    def student(p):
        return lambda x, t, cond=None: f(x, t)._replace(x_0=f(x, t).x_0 + p[0] + p[1] * x)

    def loss(p):
        each = consistency.consistency_loss(
            student(p), x_0, target=f, schedule=schedule, t=t, s=t - gap, eps=eps,
            distance=distances.squared_error, teacher=teacher,
        )  # fmt: skip
        return jnp.sum(weights * each)

    return np.asarray(jax.grad(loss)(jnp.array(at)))


@pytest.mark.parametrize("schedule", [EDM, FLOW, COSINE], ids=["edm", "flow", "cosine"])
def test_consistency_tuning_seeks_the_end_of_the_path_in_the_limit(schedule):
    """The bias of a shared noise vanishes with the gap; a wrong function's gradient does not."""
    of_gap = [np.abs(consistency_gradient(schedule, gap)).max() for gap in (1e-2, 1e-3)]
    wrong = np.abs(consistency_gradient(schedule, 1e-3, at=(0.1, 0.1))).max()
    assert of_gap[1] < 0.2 * of_gap[0] and of_gap[1] < 1e-2 * wrong


@pytest.mark.parametrize("schedule", [EDM, FLOW, COSINE], ids=["edm", "flow", "cosine"])
def test_distillation_by_the_exact_teacher_has_a_heun_steps_error_alone(schedule):
    """The local error of Heun's rule is of order 3."""
    x_0, eps, _ = pairs()
    t = jnp.full(len(x_0), 0.6)
    f = consistency_function(schedule)

    def rms(gap):
        each = consistency.consistency_loss(
            f, x_0, target=f, schedule=schedule, t=t, s=t - gap, eps=eps,
            distance=distances.squared_error, teacher=denoiser(schedule),
        )  # fmt: skip
        weight = consistency.sigma(schedule, t) - consistency.sigma(schedule, t - gap)
        return float(jnp.sqrt(jnp.mean(each * weight)))

    order = np.log2(rms(0.02) / rms(0.01))
    assert 2.5 < order < 3.6


def test_with_s_at_0_consistency_is_a_denoisers_loss():
    x_0, eps, weights = pairs()
    t = jnp.full(len(x_0), 0.6)
    posterior_mean = denoiser(FLOW)

    def never(x, t, cond=None):
        return Estimates(jnp.full_like(x, 1e6), x)

    def loss(p):
        each = consistency.consistency_loss(
            lambda x, t, c: posterior_mean(x, t)._replace(x_0=posterior_mean(x, t).x_0 + p[0]),
            x_0, target=never, schedule=FLOW, t=t, s=jnp.zeros_like(t), eps=eps,
            distance=distances.squared_error,
        )  # fmt: skip
        return jnp.sum(weights * each)

    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(1)), 0, atol=1e-6)


def test_nearer_times_are_those_of_the_paper():
    """Geng et al. 2024, figure 3: with q = 2, k = 8, b = 1 pairs begin at r = 0 for low noise."""
    t = EDM.time(-2 * jnp.log(jnp.array([0.01, 1.0, 80.0])))

    def ratios(stage):
        s = consistency.nearer_time(EDM, t, stage=jnp.int32(stage))
        return np.asarray(consistency.sigma(EDM, s) / consistency.sigma(EDM, t)) * (s > 0)

    # n = 1 + 8 sigmoid(-sigma): 4.98, 3.1515 and 1.
    np.testing.assert_allclose(ratios(0), [0, 0, 0.5], atol=1e-3)
    np.testing.assert_allclose(ratios(3), [1 - 4.98 / 16, 1 - 3.1515 / 16, 1 - 1 / 16], rtol=1e-3)
    for schedule in (FLOW, COSINE, schedules.cosine(1000)):
        whole = schedule.discrete
        times = jnp.arange(1, 1001) if whole else jnp.linspace(1e-3, 1, 1000)
        for stage in (0, 5, 40):
            s = consistency.nearer_time(schedule, times, stage=jnp.int32(stage))
            assert s.dtype == times.dtype
            assert bool(((s >= 0) & (s < times)).all())
    with pytest.raises(ValueError, match="q must be above 1"):
        consistency.nearer_time(FLOW, t, stage=jnp.int32(0), q=1.0)
    with pytest.raises(ValueError, match="k and b must be at least 0"):
        consistency.nearer_time(FLOW, t, stage=jnp.int32(0), k=-1.0)


def test_pseudo_huber_is_squared_for_small_and_linear_for_large_errors():
    x = jnp.array([[1e-4, 0.0], [300.0, 400.0], [0.0, 0.0]])
    far = distances.pseudo_huber(c=0.1)(x, jnp.zeros_like(x))
    np.testing.assert_allclose(far, [1e-8 / 0.2, 500 - 0.1, 0], rtol=1e-4, atol=1e-12)
    slope = jax.grad(lambda x: distances.pseudo_huber()(x, jnp.zeros_like(x)).sum())(x)
    np.testing.assert_allclose(slope, [[1, 0], [0.6, 0.8], [0, 0]], rtol=1e-9)
    with pytest.raises(ValueError, match="c must be a number of at least 0"):
        distances.pseudo_huber(c=-1.0)


ANGLES = [0.1, 0.7, 1.4]


@pytest.mark.parametrize("schedule", [EDM, FLOW, COSINE], ids=["edm", "flow", "cosine"])
def test_trig_networks_say_the_same_on_every_schedule(schedule):
    """F of the exact consistency function: (cos x_a - f) / (d sin), f in closed form."""
    a, d = jnp.array(ANGLES), 0.5
    x_a = jnp.array([[0.3], [-1.0], [2.0]])
    network = continuous_consistency.trig_network(
        consistency_function(schedule), schedule, sigma_data=d
    )
    cos, sin = jnp.cos(a)[:, None], jnp.sin(a)[:, None]
    std = jnp.hypot(cos * STD, sin * d)
    f = MEAN + STD / std * (x_a - cos * MEAN)
    np.testing.assert_allclose(network(x_a, a, None), (cos * x_a - f) / (d * sin), rtol=1e-6)
    t = schedule.time(-2 * jnp.log(d * jnp.tan(a)))
    np.testing.assert_allclose(
        continuous_consistency.angle(schedule, t, sigma_data=d), a, rtol=1e-6
    )


@pytest.mark.parametrize("a", ANGLES)
@pytest.mark.parametrize("normalise", [True, False])
def test_the_exact_consistency_function_has_no_tangent_along_the_teachers_path(a, normalise):
    x_0, eps, _ = pairs()
    f, teacher = (
        continuous_consistency.trig_network(make, COSINE, sigma_data=0.5)
        for make in (consistency_function(COSINE), denoiser(COSINE))
    )
    loss = continuous_consistency.continuous_consistency_loss(
        f, x_0, a=jnp.full(len(x_0), a), eps=eps, sigma_data=0.5, target=f, teacher=teacher,
        normalise=normalise,
    )  # fmt: skip
    np.testing.assert_allclose(loss, 0, atol=1e-8)


@pytest.mark.parametrize("a", ANGLES)
def test_continuous_tuning_seeks_the_exact_consistency_function(a):
    """Without a teacher single samples stand for the path; the expected gradient is 0."""
    x_0, eps, weights = pairs()
    a = jnp.full(len(x_0), a)
    f = continuous_consistency.trig_network(consistency_function(COSINE), COSINE, sigma_data=0.5)

    def gradient(at):
        def loss(p):
            student = affine(f)(p)
            each = continuous_consistency.continuous_consistency_loss(
                student, x_0, a=a, eps=eps, sigma_data=0.5,
                target=affine(f)(jax.lax.stop_gradient(p)), normalise=False,
            )  # fmt: skip
            return jnp.sum(weights * each)

        return np.abs(jax.grad(loss)(jnp.array(at)))

    assert gradient([0.0, 0.0]).max() < 1e-6 < 1e-3 < gradient([0.1, 0.1]).max()


def test_warm_up_leaves_the_first_bracket_alone():
    """At 0 the tangent is cos^2 (dx/da - d F): a denoiser's error, which is 0 at the teacher."""
    x_0, eps, _ = pairs()
    teacher = continuous_consistency.trig_network(denoiser(COSINE), COSINE, sigma_data=0.5)
    loss = continuous_consistency.continuous_consistency_loss(
        teacher, x_0, a=jnp.full(len(x_0), 0.7), eps=eps, sigma_data=0.5, target=teacher,
        teacher=teacher, warm_up=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(loss, 0, atol=1e-20)


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


def test_average_velocity_is_the_velocity_at_span_0():
    p = parametrisations.average_velocity
    assert p.spans and p.target is parametrisations.velocity.target
