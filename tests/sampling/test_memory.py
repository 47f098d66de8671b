"""What a denoiser hands on from step to step, in each sampler's loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, memory, samplers, schedules

FLOW = schedules.rectified_flow()
GRID = grids.trailing(FLOW, 6)
X_T = jax.random.normal(jax.random.key(0), (3, 2))


def counting(factor=1.0):
    """A denoiser whose x_0 is the number of steps before, times a factor."""
    slot = memory.Slot()

    def denoise(x_t, t, cond=None):
        steps = slot.read(x_t)
        slot.write(steps + 1)
        x_0 = factor * steps
        return dj.Estimates(x_0, dj.parametrisations.eps_from_x0(
            x_t, x_0, dj.process.scales_like(FLOW, t, x_t)))  # fmt: skip

    return denoise


@pytest.mark.parametrize(
    "sampler",
    [samplers.ddim, samplers.euler, samplers.heun, samplers.lms, samplers.dpm_solver_pp_2m,
     samplers.ancestral, samplers.unipc],
    ids=lambda sampler: sampler.__name__,
)  # fmt: skip
def test_the_last_step_has_seen_all_before(sampler):
    # Each of them lands on the last estimate of x_0 or, of higher order, near it.
    run = jax.jit(lambda x: memory.carried(sampler)(
        counting(), x, grid=GRID, key=jax.random.key(1)).x_0)  # fmt: skip
    x_0 = run(X_T)
    assert np.all(np.abs(x_0 - 5) < 3)
    if sampler in (samplers.ddim, samplers.euler, samplers.ancestral, samplers.heun):
        np.testing.assert_allclose(x_0, 5, atol=1e-5)
    np.testing.assert_array_equal(run(X_T), x_0)  # nothing is left of the first call


def test_two_denoisers_in_one_have_memories_of_their_own():
    guided = dj.guidance.autoguidance(counting(2.0), counting(-1.0), scale=3.0)
    x_0 = memory.carried(samplers.ddim)(guided, X_T, grid=GRID).x_0
    np.testing.assert_allclose(x_0, -5 + 3 * (10 + 5), rtol=1e-5)


def test_the_second_evaluation_of_a_step_leaves_the_memory_as_it_is():
    seen = []
    slot = memory.Slot()

    def denoise(x_t, t, cond=None):
        before = slot.read(jnp.zeros(()))
        slot.write(before + 1)
        jax.debug.callback(lambda t, n: seen.append((float(t), int(n))), t, before)
        return dj.Estimates(0 * x_t, x_t / t)

    memory.carried(samplers.heun)(denoise, X_T, grid=grids.trailing(FLOW, 2))
    jax.effects_barrier()
    assert sorted(seen) == [(0.5, 0), (0.5, 1), (1.0, 0)]


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.heun, samplers.dpm_solver_pp_3m])
def test_without_memory_it_is_the_sampler_to_the_bit(sampler):
    def denoise(x_t, t, cond=None):
        return dj.Estimates(jnp.tanh(x_t), x_t - cond)

    options = {"grid": GRID, "cond": jnp.float32(0.3), "keep_trajectory": True}
    plain, same = (f(denoise, X_T, **options) for f in (sampler, memory.carried(sampler)))
    np.testing.assert_array_equal(same.trajectory, plain.trajectory)


def test_gradients_pass_through_the_memory():
    # x_0 of a step is the sum of those before and x_T's part: linear in the factor.
    def last(factor):
        return memory.carried(samplers.ddim)(counting(factor), X_T, grid=GRID).x_0.sum()

    np.testing.assert_allclose(jax.grad(last)(2.0), 5 * X_T.size, rtol=1e-5)


def test_samplers_that_can_not_carry_it_are_refused():
    with pytest.raises(ValueError, match=r"sample with dj\.memory\.carried"):
        samplers.ddim(counting(), X_T, grid=GRID)
    with pytest.raises(ValueError, match=r"not adaptive"):
        memory.carried(samplers.adaptive)(counting(), X_T, grid=GRID, schedule=FLOW)
    with pytest.raises(ValueError, match="in a branch or loop of its own"):
        memory.carried(samplers.restart)(
            counting(), X_T, grid=grids.karras(FLOW, 9), key=jax.random.key(0)
        )
    with pytest.raises(ValueError, match=r"jit the call of the sampler|branch or loop of its own"):
        memory.carried(samplers.ddim)(jax.jit(counting()), X_T, grid=GRID)
    # None of them leaves anything behind.
    np.testing.assert_allclose(
        memory.carried(samplers.ddim)(counting(), X_T, grid=GRID).x_0, 5, rtol=1e-5
    )
