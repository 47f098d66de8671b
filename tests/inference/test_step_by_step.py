"""A model that runs step by step draws what it draws in one program."""

import numpy as np
import pytest

import diffjax
from diffjax.inference.mixing import sample_between_conditions, sample_between_seeds
from diffjax.inference.step_by_step import StepByStep


@pytest.fixture(scope="module")
def model(tiny_run):
    return diffjax.load(tiny_run)


@pytest.fixture(scope="module")
def stepwise(model):
    return StepByStep(model)


def near(a, b):
    """Equal up to one of 256 levels: programs round differently."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize(
    "how",
    [
        {"sampler": "ancestral"},
        {"sampler": "dpm_solver_pp_2m"},
        {"guidance": "classifier_free(scale=3.0)"},
        {"guidance": "adaptive_projected(scale=3.0, momentum=-0.5)"},
    ],
)
def test_it_draws_what_the_program_draws(model, stepwise, how):
    how = {"labels": [3, 7], "seed": 1, "steps": 4, **how}
    with stepwise.running() as running:
        near(running.sample(**how), model.sample(**how))


def test_the_model_itself_stays_as_it_is(model, stepwise):
    before = model.sample(labels=[1], steps=2)
    with stepwise.running() as running:
        assert running is not model
        running.sample(labels=[1], steps=2)
    assert stepwise.evaluations
    np.testing.assert_array_equal(model.sample(labels=[1], steps=2), before)


def test_steps_are_seen_with_estimates_that_belong_together(model, stepwise):
    seen = []
    with stepwise.running(seen.append) as running:
        images = running.sample(labels=[3], seed=1, steps=5, sampler="ddim", guidance="none")
    grid = model.generator(steps=5).sampling.grid
    np.testing.assert_allclose([step.t for step in seen], grid.t[:-1])
    assert stepwise.evaluations == 5
    for step, signal, noise in zip(seen, grid.signal_scale, grid.noise_scale, strict=False):
        np.testing.assert_allclose(signal * step.x_0 + noise * step.eps, step.x_t, atol=1e-4)
    last = ((seen[-1].x_0 + 1) * 127.5).clip(0, 255)
    assert np.abs(last - images).max() <= 1


def test_an_exception_of_the_observer_ends_the_run(stepwise):
    class Enough(Exception):
        pass

    def count(step):
        if stepwise.evaluations >= 2:
            raise Enough

    with pytest.raises(Enough), stepwise.running(count) as running:
        running.sample(labels=[3], steps=50, sampler="ddim", guidance="none")
    assert stepwise.evaluations == 2


def test_edits_are_seen(model, stepwise):
    picture = model.sample(labels=[3], steps=2)
    how = {"labels": [3], "count": 2, "steps": 4}
    seen = []
    with stepwise.running(seen.append) as running:
        near(
            running.edit(picture, "vary(strength=0.5)", **how),
            model.edit(picture, "vary(strength=0.5)", **how),
        )
    assert len(seen) == 2


def test_the_ends_between_two_seeds_are_their_own_samples(stepwise):
    how = {"labels": (3,), "sampler": "ddim", "steps": 3}
    with stepwise.running() as running:
        for weight, seed in ((0, 4), (1, 9)):
            mixed = sample_between_seeds(running, (4, 9), weight=weight, **how)
            np.testing.assert_array_equal(mixed, running.sample(seed=seed, **how))
        middle = sample_between_seeds(running, (4, 9), weight=0.5, **how)
        assert (middle != mixed).any()


def test_the_ends_between_two_classes_are_their_own_samples(stepwise):
    how = {"seed": 2, "sampler": "ddim", "steps": 3}
    ends = {"labels": [1]}, {"labels": [8]}
    with stepwise.running() as running:
        for weight, end in zip((0, 1), ends, strict=True):
            mixed = sample_between_conditions(running, *ends, weight=weight, **how)
            np.testing.assert_array_equal(mixed, running.sample(**end, **how))
    with pytest.raises(diffjax.UserError, match="from 0 to 1"):
        sample_between_conditions(running, *ends, weight=1.5, **how)
