"""Loss weightings: published equivalences, KL divergences in closed form, numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import parametrisations as p
from diffjax import process, schedules, time_sampling, weightings

SCHEDULES = {
    "linear": schedules.linear_beta(100),
    "cosine": schedules.continuous_cosine(),
    "edm": schedules.karras(),
    "flow": schedules.rectified_flow(),
}
ALL = {
    "x0": p.x0, "eps": p.eps, "v": p.v, "score": p.score, "velocity": p.velocity, "edm": p.edm(),
}  # fmt: skip
WEIGHTINGS = {
    "snr": weightings.snr, "truncated_snr": weightings.truncated_snr,
    "min_snr": weightings.min_snr(), "p2": weightings.p2(), "sigmoid": weightings.sigmoid(),
    "edm": weightings.edm(), "vlb": weightings.vlb, "soft_min_snr": weightings.soft_min_snr(),
    "logit_normal": weightings.logit_normal(), "cosmap": weightings.cosmap,
    "flow_velocity": weightings.flow_velocity(),
}  # fmt: skip


def times(schedule):
    return jnp.array([2, 5, 20, 60, 100]) if schedule.discrete else jnp.linspace(0.1, 0.9, 5)


def noise_level(snr):
    """A one-time schedule with the given SNR: the formulas' values can be worked out by hand."""
    log_snr = float(np.log(snr))
    return schedules.linear_log_snr(log_snr_min=log_snr - 1, log_snr_max=log_snr + 1), jnp.array(
        [0.5]
    )


def squared_errors(schedule, t, target):
    """Each example's squared error of `target` when x_0 is estimated wrongly at the given x_t."""
    x_0, wrong, eps = jax.random.normal(jax.random.key(0), (3, len(t), 1))
    x_t = dj.q_sample(schedule, x_0, t=t, eps=eps)
    scales = process.scales_like(schedule, t, x_t)
    said = [dj.convert(x, x_t, source=p.x0, target=target, scales=scales) for x in (x_0, wrong)]
    return jnp.square(said[0] - said[1])[:, 0]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_a_weighting_means_the_same_loss_for_every_target(schedule, weighting):
    t = times(schedule)
    losses = [
        weighting(schedule, t, target) * squared_errors(schedule, t, target)
        for target in ALL.values()
    ]
    for loss in losses[1:]:
        np.testing.assert_allclose(loss, losses[0], rtol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ALL)
def test_snr_weighting_is_the_plain_loss_of_eps(schedule, name):
    t = times(schedule)
    weighted = weightings.snr(schedule, t, ALL[name]) * squared_errors(schedule, t, ALL[name])
    np.testing.assert_allclose(weighted, squared_errors(schedule, t, p.eps), rtol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_uniform_is_one(schedule):
    weights = weightings.uniform(schedule, times(schedule), p.v)
    np.testing.assert_array_equal(weights, np.ones(5, np.float32))


@pytest.mark.parametrize("sigma_data", [0.5, 1.2])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_edm_weighting_is_uniform_for_edms_network_output(schedule, sigma_data):
    weights = weightings.edm(sigma_data)(schedule, times(schedule), p.edm(sigma_data))
    np.testing.assert_allclose(weights, 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("snr", "gamma", "expected"),
    [(9.0, 5.0, 0.5), (4.0, 5.0, 0.8), (1.0, 1.0, 0.5), (24.0, 1.0, 0.04)],
)
def test_min_snr_on_v_by_hand(snr, gamma, expected):
    weight = weightings.min_snr(gamma)(*noise_level(snr), p.v)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("weighting", "snr", "on_x0", "on_eps"),
    [
        (weightings.snr, 4.0, 4.0, 1.0),
        (weightings.truncated_snr, 4.0, 4.0, 1.0),
        (weightings.truncated_snr, 0.25, 1.0, 4.0),
        (weightings.min_snr(), 9.0, 5.0, 5 / 9),
        (weightings.min_snr(), 2.0, 2.0, 1.0),
        (weightings.p2(), 3.0, 3 / 4, 1 / 4),  # 1 / (k + SNR)^gamma on eps
        (weightings.p2(k=1, gamma=0.5), 3.0, 1.5, 0.5),
        (weightings.sigmoid(0.0), 1.0, 0.5, 0.5),
        (weightings.sigmoid(float(np.log(4))), 1.0, 0.8, 0.8),  # sigmoid(log 4) = 4 / 5
        (weightings.sigmoid(0.0), 4.0, 0.8, 0.2),
        (weightings.soft_min_snr(), 4.0, 2.0, 0.5),  # half of the harmonic mean of 4 and 4
        (weightings.soft_min_snr(1.0), 3.0, 0.75, 0.25),
        (weightings.edm(0.5), 4.0, 8.0, 2.0),  # sigma = 1/2: (1/4 + 1/4) / (1/4)^2
    ],
)
def test_numbers_worked_out_by_hand(weighting, snr, on_x0, on_eps):
    schedule, t = noise_level(snr)
    np.testing.assert_allclose(weighting(schedule, t, p.x0), on_x0, rtol=1e-5)
    np.testing.assert_allclose(weighting(schedule, t, p.eps), on_eps, rtol=1e-5)


def test_soft_min_snr_is_min_snr_but_near_gamma():
    schedule, t = SCHEDULES["cosine"], jnp.linspace(0, 1, 201)
    ratio = weightings.soft_min_snr(5.0)(schedule, t, p.v) / weightings.min_snr()(schedule, t, p.v)
    np.testing.assert_allclose(ratio[jnp.array([0, -1])], 1, rtol=1e-4)
    assert ratio.min() == pytest.approx(0.5, abs=0.01)
    assert schedule.log_snr(t[ratio.argmin()]) == pytest.approx(np.log(5), abs=0.1)


def test_flow_velocity_is_the_plain_loss_of_a_flow_s_velocity_away_from_the_data():
    flow, weighting = SCHEDULES["flow"], weightings.flow_velocity(0.05)
    t = jnp.array([0.06, 0.3, 1.0])
    plain = squared_errors(flow, t, p.velocity)
    np.testing.assert_allclose(
        weighting(flow, t, p.x0) * squared_errors(flow, t, p.x0), plain, rtol=1e-3
    )
    np.testing.assert_allclose(weighting(flow, t, p.velocity), 1, rtol=1e-4)
    np.testing.assert_allclose(weighting(flow, jnp.array([0.0, 0.01]), p.x0), 400, rtol=1e-5)
    for floor in (0.0, 1.0):
        with pytest.raises(ValueError, match="floor must be in"):
            weightings.flow_velocity(floor)


def test_cosmap_of_diffusers():
    torch = pytest.importorskip("torch", reason="diffusers needs torch")
    theirs = pytest.importorskip("diffusers.training_utils", reason="a second implementation")
    t = np.linspace(0.01, 0.99, 9, dtype=np.float32)
    ours = weightings.cosmap(SCHEDULES["flow"], jnp.asarray(t), p.velocity)
    sd3 = theirs.compute_loss_weighting_for_sd3("cosmap", torch.tensor(t))
    np.testing.assert_allclose(ours, sd3.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("weighting", "sampler"),
    [
        (weightings.logit_normal(), time_sampling.logit_normal()),
        (weightings.logit_normal(-0.5, 0.6), time_sampling.logit_normal(mean=-0.5, std=0.6)),
        (weightings.cosmap, time_sampling.cosmap),
    ],
    ids=["logit_normal", "moved", "cosmap"],
)
def test_a_density_as_a_weight_is_its_time_sampling(weighting, sampler):
    # On a flow, the velocity's loss over uniform times, weighted, is that over the density's times.
    flow, n = SCHEDULES["flow"], 100_000
    even = (jnp.arange(n) + 0.5) / n
    drawn = sampler(jax.random.key(0), flow, indices=jnp.arange(n), batch_size=n)
    weights = weighting(flow, even, p.velocity)
    for loss in (jnp.ones_like, jnp.square, lambda t: jnp.cos(3 * t)):
        expected = loss(drawn)
        tolerance = 4 * float(expected.std()) / n**0.5 + 1e-3
        np.testing.assert_allclose((weights * loss(even)).mean(), expected.mean(), atol=tolerance)


def kl(mean_a, mean_b, variance):
    return (mean_a - mean_b) ** 2 / (2 * variance)


@pytest.mark.parametrize("make", [schedules.linear_beta, schedules.cosine, schedules.sigmoid])
@pytest.mark.parametrize("T", [10, 1000])
def test_vlb_is_the_sum_of_kl_divergences_between_posteriors(make, T):
    schedule, x_0, estimate = make(T), 0.3, -0.2
    t = np.arange(2, T + 1)
    with jax.enable_x64(True):
        x_t = jnp.full(T - 1, 0.1)  # it cancels in the difference of two means
        true, guess = (
            process.q_posterior(
                schedule, x_t, x_0=jnp.full_like(x_t, x), s=jnp.asarray(t - 1), t=jnp.asarray(t)
            )
            for x in (x_0, estimate)
        )
        divergence = np.asarray(kl(true.mean, guess.mean, true.variance))
    weighted = weightings.vlb(schedule, jnp.asarray(t), p.x0) * (x_0 - estimate) ** 2
    np.testing.assert_allclose(weighted, T * divergence, rtol=2e-3)
    # t uniform over 1..T: the mean of what remains is the telescoped bound.
    snr = np.exp(schedule.log_snr(np.array([1, T])))
    telescoped = (snr[0] - snr[1]) / 2 * (x_0 - estimate) ** 2
    np.testing.assert_allclose(np.sum(weighted, dtype=np.float64) / T, telescoped, rtol=1e-4)


def test_vlb_at_the_first_step_is_a_gaussian_decoders():
    schedule = schedules.linear_beta(1000)
    # q(x_1 | x_2, x_0)'s variance: DDPM's choice for the decoder.
    x = jnp.zeros((1, 1))
    variance = process.q_posterior(schedule, x, x_0=x, s=1, t=2).variance
    weight = weightings.vlb(schedule, jnp.array([1]), p.x0)
    np.testing.assert_allclose(weight / 1000, kl(1.0, 0.0, variance), rtol=1e-4)


@pytest.mark.parametrize("name", ["cosine", "edm", "flow"])
def test_continuous_vlb_is_the_limit_of_many_steps(name):
    schedule = SCHEDULES[name]
    t, T = np.array([0.2, 0.5, 0.8]), 100_000
    snr = lambda t: np.exp(schedule.log_snr(t))  # noqa: E731
    many_steps = T / 2 * (snr(t - 0.5 / T) - snr(t + 0.5 / T))
    np.testing.assert_allclose(
        weightings.vlb(schedule, jnp.asarray(t), p.x0), many_steps, rtol=1e-3
    )


def test_continuous_vlb_does_not_depend_on_the_schedule_between_its_ends():
    # Kingma et al. 2021, section 5.1: only the SNR's end points matter.
    options = {"log_snr_min": -5.0, "log_snr_max": 5.0}
    t = jnp.linspace(0, 1, 20_001)
    integrals = [
        np.trapezoid(weightings.vlb(make(**options), t, p.x0) / 2, t)
        for make in (schedules.continuous_cosine, schedules.linear_log_snr)
    ]
    np.testing.assert_allclose(integrals, (np.exp(5) - np.exp(-5)) / 4, rtol=1e-3)


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
@pytest.mark.parametrize("target", [p.x0, p.eps, p.v, p.velocity, p.edm()], ids=lambda q: q.name)
def test_weights_are_finite_where_the_signal_is_zero(weighting, target):
    for schedule, end in (
        (schedules.zero_terminal_snr(schedules.cosine(10)), jnp.array([1, 9, 10])),
        (schedules.rectified_flow(), jnp.array([0.001, 0.999, 1.0])),
    ):
        if weighting is weightings.vlb and not schedule.discrete:
            end = end[:2]  # -SNR' / SNR has no limit at t = 1
        weights = weighting(schedule, end, target)
        assert np.isfinite(weights).all() and np.all(weights >= 0)


def test_the_limit_at_zero_signal_is_that_of_a_small_one():
    zero = schedules.zero_terminal_snr(schedules.cosine(10))
    t = jnp.array([10])
    for weighting in (weightings.snr, weightings.min_snr()):
        np.testing.assert_allclose(weighting(zero, t, p.eps), 1, rtol=1e-4)
    np.testing.assert_allclose(weightings.p2()(zero, t, p.eps), 1, rtol=1e-4)
