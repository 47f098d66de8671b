"""A mixture in the plane, learned by each few-step method: one evaluation against flow matching's.

The methods are used as a researcher would without the rest of diffjax: pure functions around a
network of 30 lines, from three seeds each. Flow matching ends at the data's mean in one step,
however long it is trained.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffjax as dj
from diffjax import flow_maps, grids, rng, schedules
from diffjax.losses import consistency, continuous_consistency, distances, mean_flow, time_sampling
from diffjax.sampling import samplers

FLOW = schedules.rectified_flow()
SEEDS, STEPS, TUNED, BATCH = 3, 2000, 4000, 128
PARAMETRISATION = dj.parametrisations.average_velocity
PREDICTION = dj.Prediction(FLOW, PARAMETRISATION, dj.denoisers.unit_time)
SIGMA_DATA = 0.7


def data(key, count):
    """Eight Gaussians on a circle: 1 away from the origin, with a standard deviation of 0.08."""
    which, noise = jax.random.split(key)
    angle = jax.random.randint(which, (count,), 0, 8) * (jnp.pi / 4)
    centres = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return centres + 0.08 * jax.random.normal(noise, (count, 2))


def init(key, *, width=128, features=2 + 2 * 8):
    sizes = [features, width, width, width, 2]
    keys = jax.random.split(key, len(sizes) - 1)
    made = [
        (jax.random.normal(k, (a, b)) * np.sqrt(2 / a), jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    made[-1] = (0.1 * made[-1][0], made[-1][1])
    return made


def network_of(params):
    def network(x, times, cond):
        angles = times[:, :, None] * jnp.array([1.0, 2.0, 4.0, 8.0])
        wave = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        h = jnp.concatenate([x, wave.reshape(len(x), -1)], axis=-1)
        for kernel, bias in params[:-1]:
            h = jax.nn.silu(h @ kernel + bias)
        kernel, bias = params[-1]
        return h @ kernel + bias

    return network


def denoiser_of(params):
    return PREDICTION.denoiser(network_of(params))


def velocity_of(params):
    return flow_maps.average_velocity_of(network_of(params), FLOW)


def trained(loss, key, params, *, steps, rate):
    """The averaged parameters after Adam on loss(params, x_0, eps, key, step) -> (B,)."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(state, i):
        params, opt_state, average = state
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        x_0, eps = data(keys[0], BATCH), jax.random.normal(keys[1], (BATCH, 2))
        grads = jax.grad(lambda p: loss(p, x_0, eps, keys[2], i).mean())(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: 0.998 * a + 0.002 * p, average, params)
        return (params, opt_state, average), None

    state = (params, optimizer.init(params), params)
    return jax.lax.scan(step, state, jnp.arange(steps))[0][2]


def times(sampler, key):
    return sampler(key, FLOW, indices=jnp.arange(BATCH), batch_size=BATCH)


def flow_matching(params, x_0, eps, key, step):
    t = times(time_sampling.uniform, key)
    return dj.diffusion_loss(network_of(params), x_0, prediction=PREDICTION, t=t, eps=eps)


def mean_flow_loss(tangent):
    def loss(params, x_0, eps, key, step):
        first, second, pair = jax.random.split(key, 3)
        a, b = (times(time_sampling.uniform, k) for k in (first, second))
        t = jnp.maximum(a, b)
        apart = jax.random.bernoulli(pair, 0.75, (BATCH,))
        s = jnp.where(apart, jnp.minimum(a, b), t)
        error = mean_flow.mean_flow_error(
            velocity_of(params), x_0, t=t, s=s, eps=eps, tangent=tangent
        )
        squared = distances.squared_error(error, jnp.zeros_like(error))
        return mean_flow.adaptive(squared, power=0.5)

    return loss


NOISE_LEVELS = time_sampling.log_normal(mean=-0.5, std=1.6)


def tuning(params, x_0, eps, key, step):
    t = times(NOISE_LEVELS, key)
    s = consistency.nearer_time(FLOW, t, stage=step // (TUNED // 16))
    return consistency.consistency_loss(
        denoiser_of(params), x_0, target=denoiser_of(jax.lax.stop_gradient(params)),
        schedule=FLOW, t=t, s=s, eps=eps, distance=distances.pseudo_huber(c=0.001),
    )  # fmt: skip


def continuous(teacher=None):
    def loss(params, x_0, eps, key, step):
        t = times(NOISE_LEVELS, key)
        student, target, teach = (
            p and continuous_consistency.trig_network(
                denoiser_of(p), FLOW, sigma_data=SIGMA_DATA
            )
            for p in (params, jax.lax.stop_gradient(params), teacher)
        )  # fmt: skip
        return continuous_consistency.continuous_consistency_loss(
            student, x_0, a=continuous_consistency.angle(FLOW, t, sigma_data=SIGMA_DATA),
            eps=eps, sigma_data=SIGMA_DATA, target=target, teacher=teach,
            warm_up=jnp.minimum(step / (TUNED // 8), 1.0),
        )  # fmt: skip

    return loss


def of_seeds(make):
    """make(key, initial parameters) for every seed, in one program."""
    keys = jax.vmap(lambda i: rng.stream(i, "toy", 0))(jnp.arange(SEEDS))
    return jax.jit(jax.vmap(lambda key: make(key, init(jax.random.fold_in(key, 1)))))(keys)


@pytest.fixture(scope="module")
def pretrained():
    """Half of the steps of flow matching, for what tunes or distils."""
    return of_seeds(lambda k, p: trained(flow_matching, k, p, steps=TUNED // 2, rate=2e-3))


def then(loss_of, pretrained):
    """The other half by loss_of(teacher)."""
    keys = jax.vmap(lambda i: rng.stream(i, "tune", 0))(jnp.arange(SEEDS))
    return jax.jit(jax.vmap(
        lambda key, p: trained(loss_of(p), key, p, steps=TUNED // 2, rate=1e-3)
    ))(keys, pretrained)  # fmt: skip


def sliced_distance(x, y, *, directions=64):
    """The mean 1-Wasserstein distance of projections on lines (Bonneel et al. 2015)."""
    angles = np.pi * np.arange(directions) / directions
    lines = np.stack([np.cos(angles), np.sin(angles)])
    a, b = (np.sort(np.asarray(v) @ lines, axis=0) for v in (x, y))
    return float(np.abs(a - b).mean())


def one_step(params, sampler):
    x_T = jax.random.normal(jax.random.key(7), (4000, 2))
    model = PREDICTION.flow_map(network_of(params))
    if sampler is samplers.consistency:
        model = denoiser_of(params)
    return sampler(model, x_T, grid=grids.trailing(FLOW, 1)).x_0


def distances_of(params, sampler):
    """One for each seed."""
    truth = data(jax.random.key(8), 4000)
    samples = jax.jit(jax.vmap(lambda p: one_step(p, sampler)))(params)
    return np.array([sliced_distance(x, truth) for x in samples])


@pytest.fixture(scope="module")
def flow():
    params = of_seeds(lambda k, p: trained(flow_matching, k, p, steps=STEPS, rate=2e-3))
    return distances_of(params, samplers.consistency)


@pytest.mark.parametrize("tangent", mean_flow.TANGENTS)
def test_mean_flow_from_nothing(flow, tangent):
    loss = mean_flow_loss(tangent)
    params = of_seeds(lambda k, p: trained(loss, k, p, steps=STEPS, rate=2e-3))
    found = distances_of(params, samplers.flow_map)
    assert (found < flow / 5).all(), (found, flow)


METHODS = {
    "consistency tuning": lambda teacher: tuning,
    "sCT": lambda teacher: continuous(),
    "sCD": continuous,
}


@pytest.mark.parametrize("name", METHODS)
def test_tuning_and_distillation_of_a_flow(flow, pretrained, name):
    found = distances_of(then(METHODS[name], pretrained), samplers.consistency)
    assert (found < flow / 5).all(), (found, flow)
