"""A cascade of two Gaussian models whose samples' distribution is known in closed form.

    x ~ N(0.2, 0.3^2) of 4x4 pixels,    y | z ~ N(z / 2, 0.2^2) of 8x8 pixels,

where z is x, enlarged, at level s: cos(pi s / 2) A x + sin(pi s / 2) eps.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax.conditioning.conditions import Conditions
from diffjax.conditioning.super_resolution import super_resolution
from diffjax.errors import UserError
from diffjax.images import to_model_range
from diffjax.inference.cascade import CascadeGenerator, stage_seed
from diffjax.inference.generator import Generator
from diffjax.inference.sample_conditions import SampleConditions
from diffjax.inference.sampling import Sampling
from diffjax.latent.space import PixelSpace
from diffjax.models.network import Pair
from diffjax.prediction import Prediction

SCHEDULE = dj.schedules.cosine(T=1000)
COUNT = 400
UP = super_resolution(factor=2)


def gaussian(mean_of, std, *, size, make_map=None):
    """The generator of N(mean_of(condition), std^2) by its best estimate of x_0."""

    def apply(params, x, t, cond, **how):
        signal, noise = (s[:, None, None, None] for s in SCHEDULE(jnp.rint(t).astype(int)))
        mean = mean_of(cond)
        return (std**2 * signal * x + noise**2 * mean) / (signal**2 * std**2 + noise**2)

    space = PixelSpace((size, size, 1), make_map)
    return Generator(
        Pair(lambda *_: {}, apply),
        Prediction(SCHEDULE, dj.parametrisations.x0),
        Sampling(
            dj.samplers.dpm_solver_pp_2m,
            dj.grids.trailing(SCHEDULE, 40),
            lambda model: model.denoise,
            lambda denoise, schedule: denoise,
        ),
        space=space,
        conditions=SampleConditions(space, Conditions(make_map=make_map)),
    )


@pytest.fixture(scope="module")
def cascade():
    base = gaussian(lambda cond: 0.2, 0.3, size=4)
    later = gaussian(lambda cond: cond.map.values / 2, 0.2, size=8, make_map=UP)
    return CascadeGenerator([base, later])


def drawn(generator, *, start=0, count=COUNT):
    """(x, A x, y) in [-1, 1]."""
    low, high = generator([{}, {}], start=start, count=count, batch_size=COUNT).stages
    x = to_model_range(jnp.asarray(low))
    return np.asarray(x), np.asarray(UP.enlarged(x)), np.asarray(to_model_range(jnp.asarray(high)))


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_each_stage_has_the_distribution_given_the_one_before(cascade, level):
    x, enlarged, y = drawn(cascade.at_level(level).of(seed=3))
    assert abs(x.mean() - 0.2) < 0.02 and abs(x.std() - 0.3) < 0.02
    signal, noise = np.cos(np.pi * level / 2), np.sin(np.pi * level / 2)
    rest = y - signal * enlarged / 2
    assert abs(rest.mean()) < 0.01
    assert abs(rest.std() - np.hypot(0.2, noise / 2)) < 0.01
    slope = np.sum((y - y.mean()) * (enlarged - enlarged.mean())) / np.sum(
        (enlarged - enlarged.mean()) ** 2
    )
    assert abs(slope - signal / 2) < 0.02


def test_the_noise_of_the_stages_is_independent(cascade):
    """Every pixel of the first against every residual of the second; also with seeds exchanged."""
    x, enlarged, y = drawn(cascade.of(seed=3))
    first = (x.reshape(COUNT, -1) - 0.2) / 0.3
    second = (y - enlarged / 2).reshape(COUNT, -1) / 0.2
    correlations = first.T @ second / COUNT
    # 16 * 64 of them, each of standard deviation 1 / 20: five of these.
    assert np.abs(correlations).max() < 5 / np.sqrt(COUNT)
    assert stage_seed(3, 0) == 3
    assert len({stage_seed(seed, stage) for seed in range(20) for stage in range(4)}) == 80


def test_a_sample_depends_on_its_number_and_the_seed_alone(cascade):
    whole = cascade.of(seed=5)([{}, {}], start=0, count=12, batch_size=12).stages
    part = cascade.of(seed=5)([{}, {}], start=7, count=5, batch_size=12).stages
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[7:], b)
    other = cascade.of(seed=6)([{}, {}], start=0, count=12, batch_size=12).stages
    assert all((a != b).any() for a, b in zip(whole, other, strict=True))


def test_the_first_stage_draws_what_it_draws_alone(cascade):
    alone = cascade.generators[0].of(seed=5)({}, start=0, count=12, batch_size=12).images
    both = cascade.of(seed=5)([{}, {}], start=0, count=12, batch_size=12)
    np.testing.assert_array_equal(both.stages[0], alone)
    assert both.images is both.stages[-1] and both.images.shape == (12, 8, 8, 1)


def test_a_level_of_a_stage_without_noise_is_refused():
    base = gaussian(lambda cond: 0.2, 0.3, size=4)
    quiet = super_resolution(factor=2, noise=False)
    later = gaussian(lambda cond: cond.map.values, 0.2, size=8, make_map=quiet)
    with pytest.raises(UserError, match="maps are without noise"):
        CascadeGenerator([base, later]).at_level(0.1)
