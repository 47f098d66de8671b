"""DPM-Solver that chooses its own steps: against k-diffusion, its tolerance, giving up."""

from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import grids, samplers, schedules
from tests.sampling.samplers.known import (
    FLOW,
    gaussian_denoiser,
    middle,
    middle_solution,
    mixture_denoiser,
    ode_solution,
)

EDM = schedules.karras()


def counted(denoise):
    calls = []

    def counting(x_t, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return denoise(x_t, t, cond)

    return counting, calls


@pytest.mark.parametrize(
    ("order", "pid", "rtol", "rejected"),
    [(2, (0.0, 1.0, 0.0), 1e-2, 2), (2, (0.2, 0.6, 0.1), 1e-2, 0), (3, (0.0, 1.0, 0.0), 1e-3, 3),
     (3, (0.2, 0.6, 0.1), 1e-2, 1)],
)  # fmt: skip
def test_k_diffusion_takes_the_same_steps(order, pid, rtol, rejected):
    torch = pytest.importorskip("torch", reason="k-diffusion needs torch")
    try:
        place = metadata.distribution("k-diffusion").locate_file("k_diffusion/sampling.py")
    except metadata.PackageNotFoundError:
        pytest.skip("k-diffusion is not installed")
    from benchmarks.samplers import k_diffusion_side
    from benchmarks.samplers.in_double import in_double

    sampling = k_diffusion_side._load(Path(str(place)))
    x = np.array([[30.0, -12.0, 0.4]])  # one example: theirs measures the batch, ours each
    with in_double(sampling, None):
        theirs, info = sampling.sample_dpm_adaptive(
            lambda x, sigma: torch.tanh(10 * x / (1 + sigma[0])), torch.tensor(x), 0.05, 20.0,
            order=order, rtol=rtol, atol=rtol / 10, pcoeff=pid[0], icoeff=pid[1], dcoeff=pid[2],
            disable=True, return_info=True,
        )  # fmt: skip

    def model(x_t, t, cond=None):
        sigma = EDM(jnp.asarray(t)).noise_scale
        x_0 = jnp.tanh(10 * x_t / (1 + sigma))
        return dj.Estimates(x_0, (x_t - x_0) / sigma)

    denoise, calls = counted(model)
    grid = grids.stop_before_clean(grids.exponential(EDM, 2, sigma_min=0.05, sigma_max=20.0))
    with jax.enable_x64(True):
        ours = samplers.dpm_solver_adaptive(
            denoise, jnp.array(x), grid=grid, schedule=EDM, order=order, pid=pid,
            rtol=rtol, atol=rtol / 10,
        ).x_0  # fmt: skip
        jax.effects_barrier()
    assert info["n_reject"] == rejected
    assert len(calls) == info["nfe"]
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-9)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("schedule", [EDM, FLOW], ids=["edm", "flow"])
def test_it_errs_less_with_a_smaller_tolerance(schedule, order):
    with jax.enable_x64(True):
        x_T = jnp.array([[-1.0], [0.4], [2.0]]) * float(schedule(0.9).noise_scale)
        exact = middle_solution(schedule, x_T)
        errors = [
            np.abs(np.asarray(samplers.dpm_solver_adaptive(
                gaussian_denoiser(schedule), x_T, grid=middle(schedule, 2), schedule=schedule,
                order=order, rtol=tolerance, atol=tolerance,
            ).x_0) - exact).max()
            for tolerance in (1e-2, 1e-3, 1e-5)
        ]  # fmt: skip
    # x / signal is up to 100 at the start, where errors are allowed in proportion.
    assert errors[0] < 3e-2 and errors[1] < 5e-3 and errors[2] < 1e-4
    assert np.all(np.diff(errors) < 0)


@pytest.mark.parametrize(
    "schedule",
    [schedules.linear_beta(1000), schedules.cosine(1000), EDM, FLOW],
    ids=["linear", "cosine", "edm", "flow"],
)
def test_every_time_of_the_grid_is_visited_within_the_tolerance(schedule):
    grid = grids.trailing(schedule, 6)
    x_T = jnp.array([[-1.5], [0.2], [1.0]]) * grid.noise_scale[0]
    path = samplers.dpm_solver_adaptive(
        gaussian_denoiser(schedule), x_T, grid=grid, schedule=schedule, rtol=1e-4, atol=1e-4,
        keep_trajectory=True,
    )  # fmt: skip
    assert path.trajectory.shape == (7, 3, 1)
    first = 1 if grid.signal_scale[0] == 0 else 0  # the step from pure noise is ddim's
    reach = ode_solution(np.asarray(path.trajectory[first]),
                         (grid.signal_scale[first], grid.noise_scale[first]))  # fmt: skip
    for i in range(first, 6):
        there = ode_solution(np.asarray(path.trajectory[i]),
                             (grid.signal_scale[i], grid.noise_scale[i]))  # fmt: skip
        np.testing.assert_allclose(there, reach, atol=5e-3)
    last = gaussian_denoiser(schedule)(path.trajectory[-2], grid.t[-2]).x_0
    np.testing.assert_allclose(path.x_0, last, rtol=1e-5, atol=1e-6)


def test_fewer_evaluations_than_even_steps_of_the_same_error():
    """On a mixture whose modes part late: even steps in lambda waste theirs on the rest."""
    denoise, calls = counted(mixture_denoiser(EDM))
    ends = dict(sigma_min=0.02, sigma_max=80.0)

    def grid(steps):
        return grids.stop_before_clean(grids.exponential(EDM, steps, **ends))

    with jax.enable_x64(True):
        x_T = jnp.array([[-40.0], [3.0], [0.5], [60.0]])
        fine = samplers.dpm_solver_3(denoise, x_T, grid=grid(3001)).x_0
        jax.effects_barrier()
        calls.clear()
        ours = samplers.dpm_solver_adaptive(
            denoise, x_T, grid=grid(2), schedule=EDM, rtol=1e-3, atol=1e-3
        ).x_0
        jax.effects_barrier()
        evaluations = len(calls)
        even = grids.with_stages(EDM, grid(evaluations // 3 + 1), fractions=(1 / 3, 2 / 3))
        theirs = samplers.dpm_solver_3(denoise, x_T, grid=even).x_0
    error, of_even = (np.abs(np.asarray(x) - np.asarray(fine)).max() for x in (ours, theirs))
    assert error < 5e-3 and error < of_even / 2


def test_it_gives_up():
    grid = grids.trailing(FLOW, 8)
    options = dict(grid=grid, schedule=FLOW, rtol=1e-5, atol=1e-5, max_steps=10)
    x = samplers.dpm_solver_adaptive(gaussian_denoiser(FLOW), jnp.ones((2, 3)), **options).x_0
    assert np.isnan(x).all()


@pytest.mark.parametrize("option", [{"order": 4}, {"rtol": 0.0}, {"atol": -1.0}])
def test_what_it_refuses(option):
    with pytest.raises(ValueError, match=r"orders 2 and 3, not 4|must be positive"):
        samplers.dpm_solver_adaptive(gaussian_denoiser(FLOW), jnp.ones((2, 3)),
                                     grid=grids.trailing(FLOW, 6), schedule=FLOW,
                                     **option)  # fmt: skip
