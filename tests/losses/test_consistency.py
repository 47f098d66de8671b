"""Consistency losses, discrete and continuous: where a path ends is where they are least."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.losses import consistency, continuous_consistency, distances
from diffjax.parametrisations import Estimates
from tests.losses.gaussian import (
    COSINE,
    EDM,
    FLOW,
    MEAN,
    STD,
    affine,
    consistency_function,
    denoiser,
    pairs,
)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


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


def test_an_anchored_estimate_is_the_input_without_noise_and_the_denoisers_with_much():
    denoise, t = denoiser(COSINE), jnp.full(3, 0.5)
    x = jax.random.normal(jax.random.key(0), (3,))
    plain, skip = denoise(x, t).x_0, x / COSINE(t).signal_scale
    sigma = float(consistency.sigma(COSINE, t)[0])
    for noise, share in ((1e4 * sigma, 1.0), (sigma, 0.5), (1e-4 * sigma, 0.0)):
        found = consistency.anchored(denoise, COSINE, noise=noise)(x, t)
        np.testing.assert_allclose(found.x_0, share * skip + (1 - share) * plain, atol=1e-5)
    with pytest.raises(ValueError, match="noise must be above 0, not 0"):
        consistency.anchored(denoise, COSINE, noise=0)


def test_a_constant_is_consistent_unless_it_is_anchored():
    """What a network of x_0 falls to: all pairs agree, and none says on what."""
    x_0, eps, _ = pairs()

    def constant(x, t, cond=None):
        return Estimates(jnp.full_like(x, 0.3), x)

    def loss(function):
        t = jnp.full(len(x_0), 0.1)
        return consistency.consistency_loss(
            function, x_0, target=function, schedule=FLOW, t=t, s=t / 2, eps=eps,
            distance=distances.squared_error,
        )  # fmt: skip

    assert not loss(constant).any()
    assert loss(consistency.anchored(constant, FLOW, noise=0.05)).mean() > 1


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
