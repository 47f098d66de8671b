"""Guidance against closed forms on Gaussian classes, and that x_0 and eps stay a pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, guidance, memory, process, samplers, schedules

SCHEDULE = schedules.linear_beta(100)

# Two Gaussian classes: conditional, unconditional and guided answers are known in closed form.
CENTRES, STD = jnp.array([-1.0, 1.0]), 0.4


def class_denoiser(x_t, t, cond=None):
    """E[x_0 | x_t, label]; label -1: over both classes. x_t (B, 2)."""
    signal, noise = process.scales_like(SCHEDULE, t, x_t)
    variance = (signal * STD) ** 2 + noise**2
    each = [c + signal * STD**2 * (x_t - signal * c) / variance for c in CENTRES]
    logits = jnp.stack([-((x_t - signal * c) ** 2).sum(-1) / (2 * variance.reshape(-1))
                        for c in CENTRES])  # fmt: skip
    share = jax.nn.softmax(logits, axis=0)[..., None]
    mixed = share[0] * each[0] + share[1] * each[1]
    label = (-jnp.ones(len(x_t), int) if cond is None else cond)[:, None]
    x_0 = jnp.where(label < 0, mixed, jnp.where(label == 0, *each))
    return dj.Estimates(x_0, dj.parametrisations.eps_from_x0(x_t, x_0, dj.Scales(signal, noise)))


X_T = jax.random.normal(jax.random.key(3), (4, 2))
LABELS = jnp.array([0, 1, 1, 0])
GUIDED = {
    "classifier-free": lambda d: guidance.classifier_free(d, SCHEDULE, scale=3.0),
    "rescaled": lambda d: guidance.classifier_free(d, SCHEDULE, scale=3.0, rescale=0.7),
    "in an interval": lambda d: guidance.classifier_free(
        d, SCHEDULE, scale=3.0, interval=(0.01, 1.0)
    ),
    "autoguidance": lambda d: guidance.autoguidance(
        d, lambda x, t, cond=None: class_denoiser(x, t, None), scale=2.0
    ),
    "perturbed attention": lambda d: guidance.perturbed_attention(
        d, lambda x, t, cond=None: class_denoiser(x, t, None), scale=2.0
    ),
    "projected": lambda d: guidance.adaptive_projected(
        d, SCHEDULE, scale=3.0, parallel=0.5, norm_limit=0.5
    ),
    "tangential": lambda d: guidance.tangential(d, SCHEDULE, scale=3.0),
    "CFG-Zero*": lambda d: guidance.cfg_zero_star(d, SCHEDULE, scale=3.0, zero_steps=0),
    "composed": lambda d: guidance.compose(d, conditions=[(1.0, LABELS), (-0.5, 1 - LABELS)]),
    "classifier": lambda d: guidance.classifier(
        d, SCHEDULE, log_prob=lambda x, t: -(x**2).sum(-1), scale=2.0
    ),
    "score of x_0": lambda d: guidance.by_score_of_x0(
        d, SCHEDULE, score=lambda x: -((x - 1) ** 2).sum(-1), scale=2.0
    ),
}


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("t", [20, jnp.array([5, 20, 60, 100])])
def test_guided_pairs_rebuild_x_t_and_differ(name, t):
    guided = jax.jit(GUIDED[name](class_denoiser))(X_T, jnp.asarray(t), LABELS)
    signal, noise = process.scales_like(SCHEDULE, t, X_T)
    np.testing.assert_allclose(signal * guided.x_0 + noise * guided.eps, X_T, atol=1e-4)
    assert not np.allclose(guided.x_0, class_denoiser(X_T, t, LABELS).x_0, atol=1e-3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: guidance.classifier_free(d, SCHEDULE, scale=1.0),
        lambda d: guidance.classifier_free(d, SCHEDULE, papers_scale=0.0, rescale=1.0),
        lambda d: guidance.classifier_free(d, SCHEDULE, scale=9.0, interval=(1e-4, 2e-4)),
        lambda d: guidance.adaptive_projected(d, SCHEDULE, scale=1.0),
        lambda d: guidance.tangential(d, SCHEDULE, scale=1.0),
        lambda d: guidance.tangential(d, SCHEDULE, scale=9.0, null=lambda cond: cond),
        lambda d: guidance.cfg_zero_star(d, SCHEDULE, scale=1.0, zero_steps=0),
        lambda d: guidance.cfg_zero_star(
            d, SCHEDULE, scale=9.0, zero_steps=0, null=lambda cond: cond
        ),
        lambda d: guidance.autoguidance(d, d, scale=5.0),
        lambda d: guidance.perturbed_attention(d, d, scale=5.0),
        lambda d: guidance.compose(d, conditions=[(1.0, LABELS)]),
        lambda d: guidance.classifier(d, SCHEDULE, log_prob=lambda x, t: x.sum(-1), scale=0.0),
    ],
    ids=[
        "scale 1",
        "paper's 0",
        "never inside",
        "projected 1",
        "tangential 1",
        "tangential, one condition",
        "zero star 1",
        "zero star, one condition",
        "itself",
        "nothing lost",
        "one condition",
        "0",
    ],
)
def test_no_guidance_is_no_change(wrap):
    for t in (30, jnp.array([5, 20, 60, 100])):
        plain = class_denoiser(X_T, t, LABELS)
        for a, b in zip(wrap(class_denoiser)(X_T, t, LABELS)[:2], plain[:2], strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4)


def test_scale_0_is_unconditional_and_both_conventions_agree():
    none = guidance.classifier_free(class_denoiser, SCHEDULE, scale=0.0)(X_T, 30, LABELS)
    np.testing.assert_allclose(none.x_0, class_denoiser(X_T, 30).x_0, atol=1e-5)
    ours = guidance.classifier_free(class_denoiser, SCHEDULE, scale=4.0)(X_T, 30, LABELS)
    papers = guidance.classifier_free(class_denoiser, SCHEDULE, papers_scale=3.0)
    np.testing.assert_allclose(papers(X_T, 30, LABELS).x_0, ours.x_0, rtol=1e-6)


def test_classifier_free_is_one_call_on_both_halves():
    calls = []

    def counted(x_t, t, cond=None):
        calls.append(x_t.shape)
        return class_denoiser(x_t, t, cond)

    guidance.classifier_free(counted, SCHEDULE, scale=2.0)(X_T, 30, LABELS)
    assert calls == [(8, 2)]


def test_a_scale_may_depend_on_time():
    ramp = lambda t: 1 + t / 50  # noqa: E731
    guided = guidance.classifier_free(class_denoiser, SCHEDULE, scale=ramp)
    for t, w in ((25, 1.5), (100, 3.0)):
        fixed = guidance.classifier_free(class_denoiser, SCHEDULE, scale=w)
        np.testing.assert_allclose(guided(X_T, t, LABELS).x_0, fixed(X_T, t, LABELS).x_0, rtol=1e-5)
    each = guided(X_T, jnp.array([25, 100, 25, 100]), LABELS).x_0
    np.testing.assert_allclose(each[1], guided(X_T, 100, LABELS).x_0[1], rtol=1e-5)


def test_rescaling_restores_the_conditional_standard_deviation():
    x_t = jax.random.normal(jax.random.key(1), (4, 2)) * 2
    full = guidance.classifier_free(class_denoiser, SCHEDULE, scale=6.0, rescale=1.0)
    np.testing.assert_allclose(
        full(x_t, 30, LABELS).x_0.std(1), class_denoiser(x_t, 30, LABELS).x_0.std(1), rtol=1e-4
    )


def test_guidance_with_the_true_classifier_gives_the_conditional_score():
    def log_prob(x_t, t):
        signal, noise = process.scales_like(SCHEDULE, t, x_t)
        variance = (signal * STD) ** 2 + noise**2
        logits = jnp.stack([-((x_t - signal * c) ** 2).sum(-1) / (2 * variance) for c in CENTRES])
        return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=0), LABELS[None], axis=0)[0]

    unconditional = lambda x, t, cond=None: class_denoiser(x, t, None)  # noqa: E731
    guided = guidance.classifier(unconditional, SCHEDULE, log_prob=log_prob)
    for t in (5, 40, 90):
        for a, b in zip(guided(X_T, t)[:2], class_denoiser(X_T, t, LABELS)[:2], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_composition_of_independent_conditions_is_their_product():
    """Standard normal data in two dimensions, each of which one condition tells: the product is
    known, and so is its conditional expectation."""
    variance = 0.3

    def denoise(x_t, t, cond=None):  # cond: (B, 2), NaN where nothing is said
        signal, noise = process.scales_like(SCHEDULE, t, x_t)
        said = jnp.isfinite(cond)
        mean = jnp.where(said, jnp.nan_to_num(cond), 0.0)
        spread = jnp.where(said, variance, 1.0)
        x_0 = mean + signal * spread * (x_t - signal * mean) / (signal**2 * spread + noise**2)
        return dj.Estimates(x_0, dj.parametrisations.eps_from_x0(
            x_t, x_0, dj.Scales(signal, noise)))  # fmt: skip

    first = jnp.tile(jnp.array([0.7, jnp.nan]), (4, 1))
    second = jnp.tile(jnp.array([jnp.nan, -0.4]), (4, 1))
    composed = guidance.compose(
        denoise, conditions=[(1.0, first), (1.0, second)],
        null=lambda c: jnp.full_like(c, jnp.nan),
    )  # fmt: skip
    both = jnp.tile(jnp.array([0.7, -0.4]), (4, 1))
    np.testing.assert_allclose(composed(X_T, 30).x_0, denoise(X_T, 30, both).x_0, atol=1e-5)


def unconditional(x_t, t, cond=None):
    return class_denoiser(x_t, t, None)


def test_a_model_perturbed_to_forget_the_class_is_guided_as_by_no_class():
    # Perturbed-attention guidance by a model that has lost its condition is classifier-free.
    free = guidance.classifier_free(class_denoiser, SCHEDULE, scale=3.0)(X_T, 30, LABELS)
    lost = guidance.perturbed_attention(class_denoiser, unconditional, papers_scale=2.0)
    for a, b in zip(lost(X_T, 30, LABELS)[:2], free[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    # Around classifier-free guidance both extrapolations add up.
    both = guidance.perturbed_attention(
        class_denoiser, unconditional, scale=2.0,
        around=guidance.classifier_free(class_denoiser, SCHEDULE, scale=2.0),
    )  # fmt: skip
    np.testing.assert_allclose(both(X_T, 30, LABELS).x_0, free.x_0, rtol=1e-4, atol=1e-5)


def test_projection_leaves_out_what_lies_along_the_estimate():
    guided = guidance.adaptive_projected(class_denoiser, SCHEDULE, scale=5.0)(X_T, 30, LABELS).x_0
    plain = class_denoiser(X_T, 30, LABELS).x_0
    np.testing.assert_allclose(((guided - plain) * plain).sum(1), 0, atol=1e-4)
    limited = guidance.adaptive_projected(
        class_denoiser, SCHEDULE, scale=5.0, parallel=1.0, norm_limit=0.01
    )(X_T, 30, LABELS).x_0
    assert np.linalg.norm(limited - plain, axis=1).max() <= 4 * 0.01 * 1.001


def guiders(name):
    pytest.importorskip("torch", reason="diffusers needs torch")
    return pytest.importorskip(f"diffusers.guiders.{name}", reason="a second implementation")


def both(t):
    """The conditional and the unconditional pair, and the same arrays in PyTorch."""
    torch = pytest.importorskip("torch")
    pairs = class_denoiser(X_T, t, LABELS), class_denoiser(X_T, t)
    return pairs, [[torch.tensor(np.array(e)) for e in pair[:2]] for pair in pairs]


@pytest.mark.parametrize("t", [5, 30, 90])
def test_tangential_guidance_of_diffusers(t):
    theirs = guiders("tangential_classifier_free_guidance")
    _, ((_, c), (_, u)) = both(t)
    eps = guidance.tangential(class_denoiser, SCHEDULE, scale=3.0)(X_T, t, LABELS).eps
    # Their singular vectors are float32's.
    np.testing.assert_allclose(eps, theirs.normalized_guidance(c, u, 3.0).numpy(), atol=1e-4)


def test_what_tangential_guidance_leaves_is_along_the_first_singular_vector():
    scores = np.stack([e.eps for e in both(30)[0]], axis=1)  # (B, 2, 2)
    damped = guidance.tangential(class_denoiser, SCHEDULE, scale=0.0)(X_T, 30, LABELS).eps
    first = np.linalg.svd(scores)[2][:, 0]
    expected = (scores[:, 1] * first).sum(1, keepdims=True) * first
    np.testing.assert_allclose(damped, expected, rtol=1e-3, atol=1e-5)


def test_zero_star_of_diffusers_and_its_fit():
    theirs = guiders("classifier_free_zero_star_guidance")
    (c, u), ((c_0, c_eps), (u_0, u_eps)) = both(30)
    fit = theirs.cfg_zero_star_scale(c_eps - c_0, u_eps - u_0).numpy()
    guided = guidance.cfg_zero_star(class_denoiser, SCHEDULE, scale=4.0, zero_steps=0)
    velocity = guided(X_T, 30, LABELS)
    velocity = velocity.eps - velocity.x_0
    c, u = c.eps - c.x_0, u.eps - u.x_0
    np.testing.assert_allclose(velocity, fit * u + 4 * (c - fit * u), rtol=1e-3, atol=1e-4)
    # Least squares: what is left of c is orthogonal to u, whatever the scale extrapolates.
    np.testing.assert_allclose(((velocity - c) * u).sum(1), 0, atol=1e-3)


FLOW = schedules.rectified_flow()


def of_flow(x_t, t, cond=None):
    """A denoiser on a flow that knows the class's centre and nothing else."""
    label = (-jnp.ones(len(x_t), int) if cond is None else cond)[:, None]
    x_0 = jnp.where(label < 0, 0.5 * x_t, CENTRES[label] + 0.1 * x_t)
    return dj.Estimates(x_0, dj.parametrisations.eps_from_x0(
        x_t, x_0, process.scales_like(FLOW, t, x_t)))  # fmt: skip


@pytest.mark.parametrize("zero_steps", [0, 1, 3])
def test_zero_star_stands_still_in_the_first_steps(zero_steps):
    guided = guidance.cfg_zero_star(of_flow, FLOW, scale=2.0, zero_steps=zero_steps)
    for sampler in (samplers.euler, samplers.dpm_solver_pp_2m, samplers.heun):
        path = memory.carried(sampler)(
            guided, X_T, grid=grids.trailing(FLOW, 6), cond=LABELS, keep_trajectory=True
        ).trajectory
        if sampler is not samplers.dpm_solver_pp_2m:
            moved = np.abs(np.diff(path, axis=0)).max((1, 2))
            assert np.all(moved[:zero_steps] < 1e-6) and np.all(moved[zero_steps:] > 1e-3)
        assert np.isfinite(path).all()


@pytest.mark.parametrize("momentum", [-0.5, 0.3])
def test_momentum_of_diffusers_over_the_steps(momentum):
    torch = pytest.importorskip("torch", reason="diffusers needs torch")
    theirs = guiders("adaptive_projected_guidance")
    grid = grids.trailing(FLOW, 8)
    guided = guidance.adaptive_projected(
        of_flow, FLOW, scale=6.0, parallel=0.2, norm_limit=1.5, momentum=momentum
    )
    ours = memory.carried(samplers.ddim)(
        guided, X_T, grid=grid, cond=LABELS, keep_trajectory=True
    ).trajectory
    buffer, x = theirs.MomentumBuffer(momentum), X_T
    for n in range(8):
        pairs = (torch.tensor(np.array(of_flow(x, grid.t[n], c).x_0)) for c in (LABELS, None))
        x_0 = theirs.normalized_guidance(*pairs, 5.0, buffer, 0.2, 1.5, True).numpy()
        eps = (x - grid.signal_scale[n] * x_0) / grid.noise_scale[n]
        x = jnp.float32(grid.signal_scale[n + 1] * x_0 + grid.noise_scale[n + 1] * eps)
        np.testing.assert_allclose(ours[n + 1], x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guidance.tangential(class_denoiser, SCHEDULE), "one of scale"),
        (
            lambda: guidance.tangential(class_denoiser, SCHEDULE, scale=2.0)(X_T, 3),
            "unconditional model",
        ),
        (
            lambda: guidance.cfg_zero_star(class_denoiser, SCHEDULE, scale=2.0, zero_steps=-1),
            "zero_steps must be a whole number",
        ),
        (
            lambda: guidance.cfg_zero_star(class_denoiser, SCHEDULE, scale=2.0)(X_T, 3, LABELS),
            r"dj.memory.carried\(sampler\)",
        ),
        (
            lambda: guidance.adaptive_projected(class_denoiser, SCHEDULE, scale=2.0, momentum=1.0),
            "momentum must be in",
        ),
        (lambda: guidance.classifier_free(class_denoiser, SCHEDULE), "one of scale"),
        (
            lambda: guidance.classifier_free(class_denoiser, SCHEDULE, scale=1.0, papers_scale=1.0),
            "one of scale",
        ),
        (
            lambda: guidance.classifier_free(class_denoiser, SCHEDULE, scale=2.0, interval=(2, 1)),
            "interval",
        ),
        (
            lambda: guidance.classifier_free(class_denoiser, SCHEDULE, scale=2.0, rescale=2.0),
            "rescale",
        ),
        (
            lambda: guidance.classifier_free(class_denoiser, SCHEDULE, scale=2.0)(X_T, 3),
            "unconditional model",
        ),
        (lambda: guidance.compose(class_denoiser, conditions=[]), "at least one"),
        (lambda: guidance.perturbed_attention(class_denoiser, class_denoiser), "one of scale"),
        (
            lambda: guidance.adaptive_projected(
                class_denoiser, SCHEDULE, scale=2.0, norm_limit=0.0
            ),
            "norm_limit",
        ),
    ],
)
def test_guidance_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
