"""Learned variances: gradients told apart, minima that are true variances, the bound's total."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import diffjax as dj
from diffjax import denoisers, editing, grids, guidance, inverse_problems, samplers, schedules
from diffjax import parametrisations as p
from diffjax.likelihood.vlb import vlb
from diffjax.losses.learned_variance import (
    hybrid_loss,
    interpolated_log_variance,
    vlb_loss,
    vlb_term,
)

SCHEDULE = schedules.linear_beta(50)
FLOW = dj.Prediction(schedules.rectified_flow(), p.eps)
KEY = jax.random.key(0)
B = 3
X_0 = jnp.round(jax.random.uniform(KEY, (B, 4, 4, 2), minval=0, maxval=255)) / 127.5 - 1
EPS = jax.random.normal(jax.random.key(1), X_0.shape)
T = jnp.array([1, 2, 30])


def network(params, x, time_input, cond):
    """Two numbers: one moves the mean, the other the variance."""
    mean, variance = params
    return jnp.concatenate([mean * jnp.tanh(x), jnp.full_like(x, variance)], -1)


def loss(which, params, **options):
    options = {"t": T, "eps": EPS, "prediction": dj.Prediction(SCHEDULE, p.eps)} | options
    return which(functools.partial(network, params), X_0, **options)


def test_the_hybrid_loss_trains_the_mean_as_the_simple_one_and_the_variance_by_the_bound():
    params = (0.8, 0.2)

    @jax.jit
    def slopes(params):
        simple = lambda m: dj.diffusion_loss(  # noqa: E731
            lambda x, t, c: m * jnp.tanh(x), X_0, t=T, eps=EPS,
            prediction=dj.Prediction(SCHEDULE, p.eps),
        ).sum()  # fmt: skip
        return (
            jax.grad(lambda q: loss(hybrid_loss, q, vlb_weight=0.5).sum())(params),
            jax.grad(lambda q: loss(vlb_loss, q).sum())(params),
            jax.grad(simple)(params[0]),
        )

    hybrid, bound, simple = slopes(params)
    np.testing.assert_allclose(hybrid[0], simple, rtol=1e-5)
    assert abs(hybrid[1]) > 1e-3
    np.testing.assert_allclose(hybrid[1], 0.5 * bound[1], rtol=1e-5)
    assert abs(bound[0]) > 1e-3  # with no stop-gradient the bound trains the mean too


def test_weight_0_is_the_simple_loss_with_its_weighting_and_target():
    prediction = dj.Prediction(SCHEDULE, p.x0)
    simple_loss = functools.partial(
        dj.diffusion_loss, weighting=dj.weightings.min_snr(), target=p.v
    )
    options = {"prediction": prediction, "simple_loss": simple_loss, "vlb_weight": 0.0}
    ours = jax.jit(lambda q: loss(hybrid_loss, q, **options))((0.8, 0.2))
    simple = simple_loss(
        lambda x, t, c: 0.8 * jnp.tanh(x), X_0, prediction=prediction, t=T, eps=EPS
    )
    assert ours.shape == (B,) and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, simple, rtol=1e-5)


def test_the_mean_over_all_times_is_the_bound_without_its_prior():
    # The network says the same of every x_t, so that both are the same number, not estimates of it.
    schedule, steps = schedules.cosine(12), 12
    x_0 = jnp.tile(X_0[:1], (steps, 1, 1, 1))
    said = lambda x, t, c: jnp.concatenate([0.9 * x_0[: len(x)], 0 * x + 0.4], -1)  # noqa: E731
    terms = jax.jit(
        lambda t: vlb_loss(
            said, x_0, prediction=dj.Prediction(schedule, p.x0), t=t, eps=jnp.zeros_like(x_0)
        )
    )(jnp.arange(1, steps + 1))
    denoise = denoisers.learned_variance_denoiser(said, schedule, parametrisation=p.x0)
    grid = grids.trailing(schedule, steps)
    run = functools.partial(vlb, denoise, grid=grid, key=KEY, variance="learned")
    bound = jax.jit(run)(x_0[:1])
    bits = float(bound.steps.sum() + bound.reconstruction[0])
    assert float(terms.mean()) == pytest.approx(bits * math.log(2), rel=1e-5)


@pytest.mark.parametrize("t", [2, 25])
def test_the_best_mix_is_the_true_variance_of_a_step(t):
    """Gaussian data and its exact mean: the bound's minimum over v is p(x_s | x_t)'s variance."""
    mean, std, n = 0.2, 0.05, 40_000
    x_0 = mean + std * jax.random.normal(KEY, (1, n, 1))
    eps = jax.random.normal(jax.random.key(5), x_0.shape)
    signal, noise = SCHEDULE(np.array([t - 1, t]))
    var = (signal * std) ** 2 + noise**2
    ratio = signal[1] / signal[0]
    # By conditioning x_{t-1} on x_t, two Gaussians of covariance ratio var_{t-1}.
    true = var[0] - (ratio * var[0]) ** 2 / var[1]

    def exact(v, x, time_input, cond):
        x_0 = mean + signal[1] * std**2 * (x - signal[1] * mean) / var[1]
        return jnp.concatenate([x_0, jnp.full_like(x, v)], -1)

    @jax.jit
    @jax.vmap
    def bound(v):
        return vlb_loss(
            functools.partial(exact, v), x_0, t=jnp.array([t]), eps=eps,
            prediction=dj.Prediction(SCHEDULE, p.x0),
        )[0]  # fmt: skip

    v = np.linspace(-1.5, 2.0, 701)
    best = v[np.argmin(bound(jnp.asarray(v, jnp.float32)))]
    beta = SCHEDULE.beta[t]
    beta_tilde = beta * (noise[0] / noise[1]) ** 2
    found = interpolated_log_variance((best + 1) / 2, jnp.log(beta_tilde), jnp.log(beta))
    # The mean of n squares tells a variance to sqrt(2 / n): four of them, of its part that varies.
    assert found == pytest.approx(np.log(true), abs=4 * math.sqrt(2 / n) + 0.005)


def test_a_term_of_any_subset_of_steps():
    """t = 1 by SciPy's masses; a far step by VDM's falls of SNR, with the small variance."""
    grid = grids.from_times(SCHEDULE, np.array([50, 20, 1]))
    x_0, said = X_0, 0.9 * X_0
    pair = dj.Estimates(said, said, jnp.zeros_like(said))
    terms = jax.jit(lambda step: vlb_term(pair, x_0, step=step, grid=grid))(jnp.arange(3))
    square = np.square(np.asarray(x_0 - said, np.float64)).mean((1, 2, 3))
    snr = np.exp(SCHEDULE.log_snr(np.array([50, 20, 1])))
    np.testing.assert_allclose(terms[:2], np.diff(snr) / 2 * square[:2], rtol=1e-5)
    noise = SCHEDULE(np.array([1, 20]))
    std = noise[1][0] * math.sqrt(1 - snr[1] / snr[2])  # beta-tilde of 20 -> 1
    x, m = np.asarray(x_0[2], np.float64), np.asarray(said[2], np.float64)
    low, high = np.where(x < -0.999, -9, x - 1 / 255), np.where(x > 0.999, 9, x + 1 / 255)
    mass = norm.cdf(high, m, std) - norm.cdf(low, m, std)
    np.testing.assert_allclose(terms[2], -np.log(mass).mean(), rtol=1e-4)


def test_a_network_of_twice_the_channels_is_a_denoiser_with_a_mix():
    denoise = denoisers.learned_variance_denoiser(
        lambda x, t, c: jnp.concatenate([x, x - x - 0.5], -1).astype(jnp.bfloat16),
        SCHEDULE, parametrisation=p.v,
    )  # fmt: skip
    plain = dj.denoiser(lambda x, t, c: x.astype(jnp.bfloat16), SCHEDULE, parametrisation=p.v)
    pair, expected = denoise(X_0, 7), plain(X_0, 7)
    np.testing.assert_array_equal(pair.x_0, expected.x_0)
    np.testing.assert_array_equal(pair.eps, expected.eps)
    assert pair.variance_mix.shape == X_0.shape and pair.variance_mix.dtype == jnp.float32
    np.testing.assert_array_equal(pair.variance_mix, 0.25)
    assert expected.variance_mix is None


def test_interpolation_is_of_logarithms():
    mix, low, high = jnp.array([0, 0.5, 1]), jnp.log(1e-4), jnp.log(1e-2)
    variance = np.exp(interpolated_log_variance(mix, low, high))
    np.testing.assert_allclose(variance, [1e-4, 1e-3, 1e-2], rtol=1e-5)


CONDITIONAL_MIX, LABELS = 0.75, jnp.array([1, 0, 2])


def class_denoiser(x_t, t, cond=None):
    """A mix that tells whose estimate it is: 0.75 with a label, 0.1 without."""
    label = jnp.full(len(x_t), -1) if cond is None else cond
    label = label.reshape(-1, *[1] * (x_t.ndim - 1))
    mix = jnp.where(label < 0, 0.1, CONDITIONAL_MIX)
    x_0 = 0.5 * x_t + 0.1 * label
    eps = p.eps_from_x0(x_t, x_0, dj.process.scales_like(SCHEDULE, t, x_t))
    return dj.Estimates(x_0, eps, jnp.broadcast_to(mix, x_t.shape))


def without_mix(x_t, t, cond=None):
    return class_denoiser(x_t, t, cond)._replace(variance_mix=None)


FREE = {"scale": 3.0}
WRAPPED = {
    "classifier-free": lambda d: guidance.classifier_free(d, SCHEDULE, **FREE),
    "rescaled": lambda d: guidance.classifier_free(d, SCHEDULE, **FREE, rescale=0.7),
    "interval": lambda d: guidance.classifier_free(d, SCHEDULE, **FREE, interval=(0.1, 1.0)),
    "autoguidance": lambda d: guidance.autoguidance(d, without_mix, scale=2.0),
    "perturbed": lambda d: guidance.perturbed_attention(d, without_mix, scale=2.0),
    "projected": lambda d: guidance.adaptive_projected(d, SCHEDULE, **FREE),
    "compose": lambda d: guidance.compose(d, conditions=[(2.0, LABELS), (-1.0, LABELS)]),
    "classifier": lambda d: guidance.classifier(
        d, SCHEDULE, log_prob=lambda x, t: x.sum((1, 2, 3))
    ),
    "by score": lambda d: guidance.by_score_of_x0(
        d, SCHEDULE, score=lambda x_0: x_0.sum((1, 2, 3))
    ),
    "clipped": lambda d: dj.clip_x0(d, SCHEDULE),
    "dynamic": lambda d: dj.dynamic_threshold(d, SCHEDULE),
    "known region": lambda d: editing.known_region(
        d, SCHEDULE, known=X_0, mask=jnp.ones((4, 4, 1))
    ),
    "posterior sampling": lambda d: inverse_problems.posterior_sampling(
        d, SCHEDULE, operator=lambda x: x, y=X_0
    ),
    "pseudo-inverse": lambda d: inverse_problems.pseudo_inverse(
        d, SCHEDULE, operator=lambda x: x, inverse=lambda y: y, y=X_0
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_changes_an_estimate_leaves_the_conditional_variance(name):
    # Of a scalar time an interval takes one branch or the other.
    for t in (jnp.asarray(30), T) if name == "interval" else (T,):
        learned = WRAPPED[name](class_denoiser)(EPS, t, LABELS)
        np.testing.assert_array_equal(learned.variance_mix, np.full_like(EPS, CONDITIONAL_MIX))
        fixed = WRAPPED[name](without_mix)(EPS, t, LABELS)
        assert fixed.variance_mix is None
        np.testing.assert_array_equal(learned.x_0, fixed.x_0)


@pytest.mark.parametrize(("mix", "variance"), [(0.0, "beta_tilde"), (1.0, "beta")])
def test_ancestral_sampling_between_its_fixed_variances(mix, variance):
    grid = grids.trailing(SCHEDULE, 5)

    def denoise(x_t, t, cond=None):
        return dj.Estimates(0.5 * x_t, x_t, jnp.full_like(x_t, mix))

    run = functools.partial(samplers.ancestral, denoise, EPS, grid=grid, key=KEY)
    learned = run(variance="learned", keep_trajectory=True).trajectory
    fixed = run(variance=variance, keep_trajectory=True).trajectory
    if mix == 0:
        np.testing.assert_array_equal(learned, fixed)
    np.testing.assert_allclose(learned, fixed, rtol=1e-5, atol=1e-6)


def test_ancestral_steps_have_the_geometric_mean_of_both_variances():
    grid, n = grids.from_times(SCHEDULE, np.array([50, 30, 10])), 40_000

    def denoise(x_t, t, cond=None):  # all is noise: x_s is its own noise and a share of x_t
        return dj.Estimates(0 * x_t, 0 * x_t, jnp.full_like(x_t, 0.3))

    zeros = jnp.zeros((1, n))
    stds = {}
    for variance in ("beta_tilde", "beta", "learned"):
        path = samplers.ancestral(
            denoise, zeros, grid=grid, key=KEY, variance=variance, keep_trajectory=True
        ).trajectory
        stds[variance] = float(path[1].std())
        assert not np.asarray(path[-1]).any()  # the last step adds no noise
    # The same draws, so that nothing but rounding is left.
    assert stds["learned"] == pytest.approx(
        stds["beta_tilde"] ** 0.7 * stds["beta"] ** 0.3, rel=1e-4
    )


def test_a_learned_variance_that_is_not_there_is_refused():
    grid = grids.trailing(SCHEDULE, 5)
    with pytest.raises(ValueError, match="needs a denoiser with a variance_mix"):
        samplers.ancestral(without_mix, EPS, grid=grid, key=KEY, cond=LABELS, variance="learned")
    with pytest.raises(ValueError, match="needs a denoiser with a variance_mix"):
        vlb_term(dj.Estimates(X_0, X_0), X_0, step=jnp.zeros(B, int), grid=grid)


@pytest.mark.parametrize("which", [hybrid_loss, vlb_loss])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": EPS[:1]}, r"eps of shape \(1, 4, 4, 2\) does not fit x_0 of shape \(3, 4"),
        ({"t": jnp.array(3)}, r"t of shape \(\) must have the axes \(batch,\)"),
        ({"t": jnp.ones(B)}, r"t of .* must be an array of whole numbers .* float32"),
        (
            {"prediction": dj.Prediction(schedules.rectified_flow(), p.eps), "t": jnp.ones(B, int)},
            "needs a discrete schedule",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_calls_of_the_losses_are_refused(which, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        loss(which, (0.8, 0.2), **change)


@pytest.mark.usefixtures("unchecked")
def test_outputs_and_estimates_of_another_shape_are_refused():
    plain = lambda x, t, c: x  # noqa: E731
    expected = r"returned \(3, 4, 4, 2\) for x_t of .*: expected \(3, 4, 4, 4\)"
    with pytest.raises(ValueError, match=expected):
        hybrid_loss(plain, X_0, prediction=dj.Prediction(SCHEDULE, p.eps), t=T, eps=EPS)
    with pytest.raises(ValueError, match=expected):
        denoisers.learned_variance_denoiser(plain, SCHEDULE, parametrisation=p.eps)(X_0, 3)
    grid = grids.trailing(SCHEDULE, 5)
    pair = dj.Estimates(X_0, X_0, X_0[..., :1])
    with pytest.raises(ValueError, match=r"a variance_mix of \(3, 4, 4, 1\) for x_0"):
        vlb_term(pair, X_0, step=jnp.zeros(B, int), grid=grid)
    with pytest.raises(ValueError, match=r"step of shape \(\) must have the axes \(batch,\)"):
        vlb_term(dj.Estimates(X_0, X_0, X_0), X_0, step=jnp.asarray(0), grid=grid)
