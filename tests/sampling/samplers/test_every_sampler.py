"""What holds for all samplers: order, the exact solution, finite numbers, one loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, samplers, schedules
from diffjax import parametrisations as p
from diffjax.experiment.sampling import SAMPLERS
from tests.sampling.samplers.cases import (
    ALL,
    AT_100_STEPS,
    DETERMINISTIC,
    HIGH_ORDER_END,
    LEAST_STEPS,
    ORDER,
    OTHERS,
    STOCHASTIC,
    STOCHASTIC_OTHERS,
    find,
)
from tests.sampling.samplers.known import (
    KEY,
    MEAN,
    STD,
    gaussian_denoiser,
    ode_solution,
)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize(
    ("schedule", "make_grid"),
    [
        (schedules.linear_beta(1000), grids.trailing),
        (schedules.linear_beta(1000), grids.karras),
        (schedules.cosine(1000), grids.trailing),
        (schedules.cosine(1000), grids.linspace),
        (schedules.zero_terminal_snr(schedules.cosine(1000)), grids.trailing),
        (schedules.karras(), grids.karras),
        (schedules.rectified_flow(), grids.trailing),
        (schedules.rectified_flow(), grids.karras),
    ],
    ids=[
        "linear", "linear, karras", "cosine", "cosine, linspace", "zero snr", "edm", "flow",
        "flow, karras",
    ],
)  # fmt: skip
def test_many_steps_reach_the_exact_solution(name, schedule, make_grid):
    grid = make_grid(schedule, 100)
    x_T = jnp.array([[-1.5], [0.2], [1.0]]) * grid.noise_scale[0]
    sampled = DETERMINISTIC[name](gaussian_denoiser(schedule), jnp.float32(x_T), grid=grid).x_0
    exact = ode_solution(np.asarray(x_T), (grid.signal_scale[0], grid.noise_scale[0]))
    np.testing.assert_allclose(
        sampled, exact, atol=AT_100_STEPS.get(name, 0.03 if ORDER[name] == 1 else 0.005)
    )


@pytest.mark.parametrize("steps", [3, 5, 10])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_few_steps_from_nearly_no_signal_stay_near(name, steps):
    # cosine(1000) ends at a signal of 5e-5: a solver in x / signal would blow up 1000 times.
    schedule = schedules.cosine(1000)
    x_T = jnp.array([[2.0]])
    sampled = DETERMINISTIC[name](
        gaussian_denoiser(schedule), x_T, grid=grids.trailing(schedule, steps)
    ).x_0
    np.testing.assert_allclose(sampled, MEAN + 2 * STD, atol=0.5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    "schedule",
    [schedules.zero_terminal_snr(schedules.cosine(10)), schedules.rectified_flow(),
     schedules.karras()],
    ids=["zero snr", "flow", "edm"],
)  # fmt: skip
def test_any_number_of_steps_is_finite_and_lands_on_x_0(name, steps, schedule):
    network = lambda x, t, cond: 0.1 * x + 0.2  # noqa: E731
    denoise = dj.denoiser(network, schedule, parametrisation=p.v)
    if steps < LEAST_STEPS.get(name, 1):
        with pytest.raises(ValueError, match="at least"):
            ALL[name](denoise, jnp.ones((2, 3)), grid=grids.trailing(schedule, steps))
        return
    grid = grids.trailing(schedule, steps)
    x_T = jax.random.normal(KEY, (2, 3)) * grid.noise_scale[0]
    path = ALL[name](denoise, x_T, grid=grid, key=KEY, keep_trajectory=True)
    assert path.trajectory.shape == (steps + 1, 2, 3)
    assert np.isfinite(path.trajectory).all()
    np.testing.assert_array_equal(path.trajectory[0], x_T)
    np.testing.assert_array_equal(path.trajectory[-1], path.x_0)
    if name in HIGH_ORDER_END and steps > 1:
        return
    # The last step of the others is of order 0: it lands on the estimate.
    last = denoise(path.trajectory[-2], grid.t[-2]).x_0
    np.testing.assert_allclose(path.x_0, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*ALL, *OTHERS])
@pytest.mark.parametrize("parametrisation", [p.x0, p.velocity, p.edm()], ids=lambda q: q.name)
def test_no_nan_from_pure_noise_whatever_is_predicted(name, parametrisation):
    flow = schedules.rectified_flow()
    time_input = dj.denoisers.scaled_time
    if parametrisation.name == "edm":
        time_input = dj.denoisers.quarter_log_sigma
    network = lambda x, t, cond: 0.1 * x + jnp.cos(t)[:, None]  # noqa: E731
    denoise = dj.denoiser(network, flow, parametrisation=parametrisation, time_input=time_input)
    x_0 = find(name, flow)(denoise, jnp.ones((2, 3)), grid=grids.trailing(flow, 4), key=KEY).x_0
    assert np.isfinite(x_0).all()


@pytest.mark.parametrize("name", [*ALL, *OTHERS])
def test_trajectory_does_not_change_the_result(name):
    schedule = schedules.linear_beta(50)
    grid = grids.leading(schedule, 10)
    run = functools.partial(
        find(name, schedule), gaussian_denoiser(schedule), jnp.ones((2, 3)), grid=grid
    )
    plain, kept = run(key=KEY), run(key=KEY, keep_trajectory=True)
    assert plain.trajectory is None
    np.testing.assert_array_equal(plain.x_0, kept.x_0)
    np.testing.assert_array_equal(kept.trajectory[-1], kept.x_0)


@pytest.mark.parametrize("name", [*STOCHASTIC, *STOCHASTIC_OTHERS])
def test_an_example_does_not_depend_on_its_batch(name):
    schedule = schedules.linear_beta(50)
    grid, denoise = grids.trailing(schedule, 5), gaussian_denoiser(schedule)
    sampler = find(name, schedule)
    keys, x_T = jax.random.split(KEY, 6), jax.random.normal(KEY, (6, 4))
    whole = sampler(denoise, x_T, grid=grid, key=keys).x_0
    halves = [sampler(denoise, x_T[i], grid=grid, key=keys[i]).x_0
              for i in (slice(0, 2), slice(2, 6))]  # fmt: skip
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    # One key: an example keeps its noise when the batch grows.
    few = sampler(denoise, x_T[:2], grid=grid, key=KEY).x_0
    np.testing.assert_array_equal(sampler(denoise, x_T, grid=grid, key=KEY).x_0[:2], few)
    # Equal starts part ways: examples don't share their noise, nor do steps.
    same = sampler(denoise, jnp.zeros((3, 4)), grid=grid, key=KEY).x_0
    assert len(np.unique(same)) == same.size


def count_equations(jaxpr):
    inner = [v for e in jaxpr.eqns for v in e.params.values()]
    inner = [w for v in inner for w in (v if isinstance(v, tuple) else (v,))]
    nested = sum(count_equations(getattr(w, "jaxpr", w)) for w in inner
                 if hasattr(getattr(w, "jaxpr", w), "eqns"))  # fmt: skip
    return len(jaxpr.eqns) + nested


@pytest.mark.parametrize("name", [*ALL, *OTHERS])
def test_program_does_not_grow_with_the_number_of_steps(name):
    schedule = schedules.linear_beta(1000)
    denoise = gaussian_denoiser(schedule)

    def program(steps, keep_trajectory=False):
        grid = grids.trailing(schedule, steps)
        return jax.make_jaxpr(
            lambda x, key: find(name, schedule)(
                denoise, x, grid=grid, key=key, keep_trajectory=keep_trajectory
            )
        )(jnp.zeros((2, 3)), KEY)

    few, many = program(5), program(500)
    assert sum(e.primitive.name == "scan" for e in many.jaxpr.eqns) == 1
    assert count_equations(few.jaxpr) == count_equations(many.jaxpr)
    (loop,) = (e for e in many.jaxpr.eqns if e.primitive.name == "scan")
    # Without a trajectory no output of the loop has the steps' axis.
    assert all(v.aval.shape in ((2, 3), ()) for v in loop.outvars)


def test_float_and_integer_times_and_conditions_reach_the_denoiser():
    seen = []

    def denoise(x_t, t, cond=None):
        seen.append((jnp.asarray(t).dtype, cond))
        return dj.Estimates(x_t, x_t)

    labels = jnp.array([1, 2])
    x_T = jnp.ones((2, 1))
    samplers.heun(denoise, x_T, grid=grids.trailing(schedules.cosine(10), 2), cond=labels)
    samplers.ddim(denoise, x_T, grid=grids.karras(schedules.cosine(10), 2), cond=labels)
    assert [dtype.kind for dtype, _ in seen] == ["i", "i", "f"]
    assert all(cond is labels for _, cond in seen)


def test_every_sampler_has_a_name_in_configs_and_is_tested_here():
    exported = {*samplers.__all__} - {"Samples", "ddim_inversion", "multistep_inversion"}
    assert exported == set(SAMPLERS)
    functions = (getattr(f, "func", f) for f in (ALL | OTHERS).values())
    # With tests of their own: ddim by another name, a solver of even grids alone, few-step ones.
    apart = {"euler_ancestral", "rk4", "consistency", "flow_map"}
    assert exported - apart == {f.__name__ for f in functions}
